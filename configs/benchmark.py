"""Models and batches that the speed benchmark measures, by size: tiny, scratch, 16m, 124m, 345m or 774m.

  python -m crs_jax.benchmark --config=configs/benchmark.py --sizes=16m

Hardware: tiny (to see that all works), scratch and 16m a CPU with two cores; the others one accelerator of 80 GB.

Sizes are GPT-2's (Radford et al. 2019, table 2); 16m is 4 layers of 256 under GPT-2's vocabulary. Nothing is read or
trained for good: weights, contexts and replies are random. `simulator.catalogue_size` is the number of items. What
another implementation has no counterpart of is off, so that times can be compared: dropout, the running average of the
supervised stage, and acts summed over beside the sampled ones (`--config.ppo.all_acts=32` puts them back).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from crs_jax.runtime.errors import InputError

SIZES = {
    "tiny": (2, 64, 2),
    "scratch": (4, 192, 4),
    "16m": (4, 256, 4),
    "124m": (12, 768, 12),
    "345m": (24, 1024, 16),
    "774m": (36, 1280, 20),
}
"""Layers, width, heads."""


def get_config(size: str = "16m") -> ConfigDict:
    if size not in SIZES:
        raise InputError(f"--sizes={size}: there is no such size; there are {', '.join(SIZES)}")
    c = common.get_config()
    c.model.layers, c.model.width, c.model.heads = SIZES[size]
    c.model.dropout = 0.0
    c.model.positions = 1024
    c.sft.average = 0.0
    c.ppo.all_acts = 0
    c.ppo.group_baseline = False
    c.ppo.epochs = 4
    c.tokenizer.kind = "gpt2"
    if size in ("tiny", "scratch", "16m"):
        c.data.context_tokens = 32
        c.data.reply_tokens = 32
        c.ppo.contexts = 16
        c.ppo.group = 1
        c.sft.rows = 8
        c.sft.row_tokens = 128
    else:
        c.simulator.catalogue_size = 6924  # ReDial's
        c.data.context_tokens = 384
        c.data.reply_tokens = 64
        c.ppo.contexts = 32
        c.ppo.group = 8
        c.ppo.epochs = 2
        c.sft.rows = 16
        c.sft.row_tokens = 1024
        c.model.dtype = "bfloat16"
        c.model.remat = True
    if size in ("tiny", "scratch"):
        c.tokenizer.kind = "bpe"
    if size == "tiny":
        c.tokenizer.vocab_size = 506
        c.data.context_tokens = 16
        c.data.reply_tokens = 8
        c.ppo.contexts = 4
        c.ppo.epochs = 1
        c.ppo.minibatches = 2
        c.sft.rows = 2
        c.sft.row_tokens = 32
    c.lock()
    return c
