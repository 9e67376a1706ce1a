"""The values that single settings may have; `config.py` checks them and what holds between settings."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

from crs_jax.data.corpora import CORPORA
from crs_jax.models.decoder import DECODERS
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.arguments import MOST_SEED

CHOICES: dict[str, Collection[str]] = {
    "algorithm": ALGORITHMS,
    "data.dataset": CORPORA,
    "data.domain": ("movies", "books"),
    "data.pipeline": ("numpy", "tftext"),
    "data.on_error": ("raise", "skip"),
    "tokenizer.kind": ("bpe", "gpt2"),
    "model.decoder": DECODERS,
    "model.dtype": ("float32", "bfloat16"),
    "model.matmul": ("float32", "tensorfloat32", "bfloat16"),
    "model.attention": ("xla", "cudnn"),
    "model.value": ("shared", "detached", "separate"),
    "reward.relevance": ("exact", "learned"),
    "signals.shift": ("residual", "difference"),
    "ppo.evidence": ("same", "all"),
    "ppo.seeker": ("model", "simulator"),
}

COUNT = (0, 10**9)
BATCH = (1, 2**20)
TOKENS = 2**17  # of one sequence, at most
WEIGHT = (0.0, 1e3)
SHARE = (0.0, 1.0)
EPOCHS = (0.0, 1e4)
RATE = (1e-12, 1.0)  # learning rates
DECAY = (0.0, 100.0)  # weight decay
DROPOUT = (0.0, 0.95)
AVERAGE = (0.0, 0.99999)  # of weights
CLIP = (1e-6, 1e6)
DEVICES = 2**20
LEAST_TEMPERATURE = 0.05  # sampling is all but greedy there, and logits over it stay far from float32's end

BOUNDS: dict[str, tuple[int, int] | tuple[float, float]] = {
    "seed": (0, MOST_SEED),
    "log_every": (1, 10**9),
    "save_minutes": (1e-3, 1e6),
    "data.window": (1, 10**4),
    "data.context_tokens": (3, TOKENS),  # at least one token before the prompt's own two
    "data.reply_tokens": (4, TOKENS),
    "data.act_items": (1, 1024),
    "data.validation_dialogues": COUNT,
    "data.max_train_dialogues": COUNT,
    "data.max_eval_dialogues": COUNT,
    "simulator.catalogue_size": (20, 10**6),
    "simulator.train_dialogues": (10, 10**7),
    "simulator.test_dialogues": (1, 10**7),
    "tokenizer.vocab_size": (256, 2**20),  # a byte-level BPE starts from the 256 bytes
    "encoder.max_tokens": (3, TOKENS),  # a word piece between the two that every text has
    "encoder.batch_tokens": (1, 2**24),
    "model.layers": (1, 1024),
    "model.width": (1, 2**16),
    "model.heads": (1, 1024),
    "model.positions": (8, TOKENS),
    "model.dropout": DROPOUT,
    "head.epochs": EPOCHS,
    "head.seeker": WEIGHT,
    "head.later": WEIGHT,
    "head.batch": BATCH,
    "head.learning_rate": RATE,
    "head.gain_rate": RATE,
    "head.weight_decay": DECAY,
    "head.dropout": DROPOUT,
    "head.average": AVERAGE,
    "sft.epochs": EPOCHS,
    "sft.rows": BATCH,
    "sft.row_tokens": (8, TOKENS),
    "sft.learning_rate": RATE,
    "sft.warmup": SHARE,
    "sft.weight_decay": DECAY,
    "sft.item_decay": DECAY,
    "sft.average": AVERAGE,
    "sft.clip_norm": CLIP,
    "sft.act_weight": WEIGHT,
    "sft.new_rate": WEIGHT,
    "sft.query_rate": WEIGHT,
    "sft.act_dropout": DROPOUT,
    "sft.accumulate": BATCH,
    "sft.crop": SHARE,
    "signals.engagement.dwell": WEIGHT,
    "signals.engagement.length": WEIGHT,
    "signals.engagement.continuation": WEIGHT,
    "signals.engagement.uptake": WEIGHT,
    "signals.engagement.clicks": WEIGHT,
    "reward.alpha": (-1e3, 1e3),
    "reward.beta": (-1e3, 1e3),
    "reward.gamma": (-1e3, 1e3),
    "reward.delta": (-1e3, 1e3),
    "reward.clip": CLIP,
    "reward.ensemble": (1, 100),
    "reward.spread": WEIGHT,
    "reward.epochs": EPOCHS,
    "reward.learning_rate": RATE,
    "reward.new_rate": WEIGHT,
    "reward.weight_decay": DECAY,
    "reward.clip_norm": CLIP,
    "reward.accumulate": BATCH,
    "reward.counterfactual": WEIGHT,
    "reward.alternatives": (1, 1000),
    "reward.holdout": (0.0, 0.95),
    "seeker.epochs": (1e-3, 1e4),
    "seeker.learning_rate": RATE,
    "ppo.seed": (0, 10**6),
    "ppo.iterations": (0, 10**7),
    "ppo.contexts": BATCH,
    "ppo.slate_batches": BATCH,
    "ppo.buckets": (1, 1000),
    "ppo.slate_rate": WEIGHT,
    "ppo.query_rate": WEIGHT,
    "ppo.value_rate": WEIGHT,
    "ppo.group": (1, 2**16),
    "ppo.turns": (1, 100),
    "ppo.turn_discount": SHARE,
    "ppo.all_acts": (0, 2**20),
    "ppo.list_items": (1, 2**16),
    "ppo.lists": BATCH,
    "ppo.epochs": (1, 10**4),
    "ppo.minibatches": BATCH,
    "ppo.accumulate": BATCH,
    "ppo.temperature": (LEAST_TEMPERATURE, 10.0),
    "ppo.learning_rate": RATE,
    "ppo.warmup": SHARE,
    "ppo.decay_to": SHARE,
    "ppo.value_warmup": (0, 10**7),
    "ppo.weight_decay": DECAY,
    "ppo.clip_norm": CLIP,
    "ppo.clip": (1e-6, 0.999),  # the ratio is kept between 1 - clip and 1 + clip
    "ppo.value_clip": CLIP,
    "ppo.value_coef": WEIGHT,
    "ppo.act_entropy": WEIGHT,
    "ppo.word_entropy": WEIGHT,
    "ppo.act_kl": WEIGHT,
    "ppo.decision_kl": WEIGHT,
    "ppo.word_kl": WEIGHT,
    "ppo.act_kl_target": WEIGHT,
    "ppo.word_kl_target": WEIGHT,
    "ppo.kl_horizon": (1, 10**9),
    "ppo.checks_a_run": (1, 10**4),
    "ppo.validation_contexts": COUNT,
    "ppo.hr_floor": (0.0, 0.999),
    "ppo.step_kl": (1e-9, 1e9),
    "ppo.discount": SHARE,
    "ppo.gae_lambda": SHARE,
    "ppo.missing_end_penalty": WEIGHT,
    "ppo.decode_block": (1, TOKENS),
    "evaluation.batch": BATCH,
    "evaluation.negatives": (1, 10**5),
    "evaluation.bootstrap": (1, 10**5),
    "evaluation.generate": COUNT,
    "evaluation.optimum_acts": (0, 2**20),
    "evaluation.samples": COUNT,
    "evaluation.temperature": (0.0, 10.0),
    "mesh.data": (-1, DEVICES),
    "mesh.fsdp": (1, DEVICES),
    "mesh.tensor": (1, DEVICES),
}
"""Least and most of every number, both allowed. Whole numbers are bounded by whole numbers, others by floats."""


def broken_bound(path: str, value: Any) -> str:
    """What a number has to be, where it is beyond the bounds of its setting; else nothing."""
    low, high = BOUNDS[path]
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return "must be a whole number" if whole else "must be a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if value < low:
        return f"must be at least {_written(low)}"
    return "" if value <= high else f"must lie between {_written(low)} and {_written(high)}"


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
