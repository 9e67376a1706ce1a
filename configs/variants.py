"""The three sizes that every real corpus comes in."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from crs_jax.runtime.errors import InputError

ROBERTA = "cardiffnlp/twitter-roberta-base-sentiment-latest@3216a57f2a0d9c45a2e6c20157c20c49fb4bf9c7"


def get_config(file: str, variant: str, also: str = "") -> ConfigDict:
    """The defaults, sized by the variant and still unlocked: '' (GPT-2 medium), 'scratch' or 'tiny'.

    `file` is the name of the config file, for the message when there is no such variant; `also` names its others.
    """
    sizes = {"": _gpt2_medium, "scratch": _scratch, "tiny": _tiny}
    if variant not in sizes:
        raise InputError(
            f"--config=configs/{file}:{variant}: there is no variant {variant!r}; use configs/{file} (GPT-2 medium "
            f"from the hub), configs/{file}:scratch (no hub, fits a CPU) or configs/{file}:tiny (a sample, minutes)"
            f"{also}"
        )
    c = common.get_config()
    sizes[variant](c)
    return c


def _gpt2_medium(c: ConfigDict) -> None:
    """GPT-2 medium (345M in Yang et al. 2025) and a RoBERTa sentiment classifier, both from the hub."""
    c.tokenizer.kind = "gpt2"
    c.signals.sentiment = ROBERTA
    c.data.context_tokens = 192  # of ReDial's contexts 99 % have at most 171 tokens, 74 on average
    c.data.reply_tokens = 48  # of its replies 99 % at most 33, 10 on average

    c.model.init = "openai-community/gpt2-medium"
    c.model.layers = 24
    c.model.width = 1024
    c.model.heads = 16
    c.model.positions = 1024
    c.model.dtype = "bfloat16"
    c.model.remat = True

    c.sft.epochs = 3.0
    c.sft.rows = 16
    c.sft.row_tokens = 1024
    c.sft.learning_rate = 5e-5
    c.sft.new_rate = 10.0
    c.sft.weight_decay = 0.01

    c.seeker.learning_rate = 5e-5

    c.reward.epochs = 2.0
    c.reward.learning_rate = 2e-5
    c.reward.new_rate = 25.0
    c.reward.weight_decay = 0.01

    c.ppo.iterations = 200
    c.ppo.contexts = 32
    c.ppo.buckets = 2
    c.ppo.group = 8
    c.ppo.learning_rate = 5e-6
    c.ppo.slate_rate = 20.0
    c.ppo.query_rate = 200.0
    c.ppo.act_kl_target = 0.3
    c.ppo.word_kl_target = 0.5
    c.ppo.kl_horizon = 2000  # of 51,200 replies in all: a coefficient can move by 2.6 % an iteration
    c.ppo.validation_contexts = 1024  # so that the floor is three standard errors of a paired difference below SFT
    c.ppo.hr_floor = 0.9

    c.evaluation.batch = 64


def _scratch(c: ConfigDict) -> None:
    """4 layers x 192 over a 4,096-token vocabulary (4,090 BPE and 6 control tokens): no hub, fits a CPU."""
    c.tokenizer.kind = "bpe"
    c.tokenizer.vocab_size = 4090
    c.model.init = "scratch"
    c.model.layers = 4
    c.model.width = 192
    c.model.heads = 4
    c.model.dropout = 0.2
    c.data.context_tokens = 128
    c.data.reply_tokens = 40
    c.sft.epochs = 6.0
    c.sft.rows = 10
    c.sft.row_tokens = 384
    c.sft.weight_decay = 0.1
    c.sft.item_decay = 10.0
    c.sft.act_dropout = 0.5
    c.reward.epochs = 2.0
    c.ppo.iterations = 60
    c.evaluation.batch = 64


def _tiny(c: ConfigDict) -> None:
    """Every stage on a sample: shows that all works on this data, says nothing of quality."""
    _scratch(c)
    c.tokenizer.vocab_size = 2042
    c.encoder.max_tokens = 32  # title, genres and people; the plot is cut
    c.data.max_train_dialogues = 300
    c.data.max_eval_dialogues = 60
    c.model.layers = 2
    c.model.width = 128
    c.sft.epochs = 3.0
    c.reward.epochs = 2.0
    c.ppo.iterations = 5
    c.ppo.contexts = 8
    c.ppo.group = 4
    c.evaluation.bootstrap = 200
    c.evaluation.generate = 40
    c.evaluation.samples = 20
    c.log_every = 5
