"""Checks of a config before anything runs, and the sizes that follow from it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from crs_jax.data.corpora import CORPORA, is_simulated
from crs_jax.data.records import clipped
from crs_jax.models.decoder import DECODERS
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.storage import is_file, is_folder
from crs_jax.runtime.user_function import load
from crs_jax.signals.feedback_log import read_log
from crs_jax.signals.registry import weights

STAGES = ("sft", "reward", "ppo", "evaluate")
"""All stages, in the only order in which they run."""


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as ("ppo.clip", 0.2), in alphabetical order."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def stages(config: ConfigDict) -> tuple[str, ...]:
    """The stages to run; `InputError` where one is unknown, stands twice or out of order."""
    text = _get(config, "stages")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in STAGES:
            raise _error(
                "stages", text, f"there is no stage {clipped(name, 200)!r}; the stages are {', '.join(STAGES)}"
            )
    if not names:
        raise _error("stages", text, f"name at least one of {', '.join(STAGES)}")
    wanted = tuple(name for name in STAGES if name in names)
    if names != wanted:
        raise _error("stages", text, f"each stage once and in order, so write {','.join(wanted)}")
    return names


def validate(config: ConfigDict) -> None:
    """Raises `InputError`, naming the flag, for the first value that cannot work.

    Looks at the config alone and at the files it names; a reward of one's own is imported. Takes milliseconds and needs
    no device. What depends on the number of devices is checked by `derive`.
    """
    validate_values(config)
    _validate_inputs(config)


def validate_values(config: ConfigDict) -> None:
    """The same for the values alone: what they name is neither looked for nor run."""
    _validate_settings(config)
    stages(config)
    _validate_rates(config)
    _validate_data(config)
    _validate_model(config)
    _validate_ppo(config)


def _validate_settings(config: ConfigDict) -> None:
    """All settings of configs/common.py and no others, each with a value that it may have."""
    known = common.settings().flat()
    for path, value in fields(config):
        if path not in known:
            raise _error(path, value, "there is no such setting in configs/common.py")
    for path, setting in known.items():
        if rule := setting.refusal(_get(config, path)):
            raise _error(path, _get(config, path), rule)


def slate_contexts(config: ConfigDict) -> int:
    """Contexts of a PPO iteration: those whose first items are summed over, or where none are, those replied to."""
    return config.ppo.contexts * (config.ppo.slate_batches if config.ppo.all_acts else 1)


def derive(config: ConfigDict, devices: int) -> dict[str, Any]:
    """The sizes that follow from the config and the number of devices.

    Rows of a batch are divided over the mesh axes data and fsdp together ("shards" below); devices along the tensor
    axis hold the same rows. All replies to one context stay on one shard, since they come from one prefill.

    Returns:
      mesh: {"data", "fsdp", "tensor"}, whose product is `devices`.
      shards: data x fsdp.
      sft_rows_per_shard, sft_tokens_per_step (packed, padding included),
      evaluation_batch_per_shard.
      contexts_per_shard; replies: contexts x group, sampled an iteration; replies_per_shard; minibatch_replies and
      minibatch_replies_per_shard; updates_per_iteration: epochs x minibatches; reply_row_tokens: the length of one
      PPO row, context and reply.

    Raises:
      InputError: the mesh does not fit the devices, or a batch does not divide; names the flag.
    """
    mesh = _mesh(config, devices)
    shards = mesh["data"] * mesh["fsdp"]
    over = f"the {shards} shards of the mesh (data {mesh['data']} x fsdp {mesh['fsdp']})"
    for path in ("head.batch", "sft.rows", "evaluation.batch", "ppo.contexts"):
        if _get(config, path) % shards:
            raise _error(path, _get(config, path), f"must be a multiple of {over}")
    for path in ("model.heads", "model.width"):
        if _get(config, path) % mesh["tensor"]:
            raise _error(path, _get(config, path), f"must be a multiple of --config.mesh.tensor={mesh['tensor']}")
    algorithm = ALGORITHMS[config.algorithm]
    if algorithm.relative is not None and config.ppo.group < 2:
        raise _error("ppo.group", config.ppo.group, f"must be at least 2 for --config.algorithm={config.algorithm}")
    if algorithm.whitens and config.ppo.group_baseline and config.ppo.group < 2:
        rule = "must be at least 2 for --config.ppo.group_baseline=true; without it a value function is the baseline"
        raise _error("ppo.group", config.ppo.group, rule)
    if config.ppo.all_acts and not algorithm.sums:
        rule = f"must be 0 for --config.algorithm={config.algorithm}, which compares sampled replies alone"
        raise _error("ppo.all_acts", config.ppo.all_acts, rule)
    if algorithm.optimum and not (config.ppo.all_acts and config.ppo.act_kl and config.ppo.decision_kl):
        for path in ("ppo.all_acts", "ppo.act_kl", "ppo.decision_kl"):
            if not _get(config, path):
                rule = (
                    f"must be above 0 for --config.algorithm={config.algorithm}, which learns the optimum of these acts"
                )
                raise _error(path, _get(config, path), rule)
    if algorithm.lists and config.ppo.all_acts < config.ppo.list_items:
        rule = f"must be at least --config.ppo.list_items={config.ppo.list_items}: lists are drawn from these acts"
        raise _error("ppo.all_acts", config.ppo.all_acts, rule)
    replies = config.ppo.contexts * config.ppo.group
    minibatch = replies // config.ppo.minibatches
    contexts = config.ppo.contexts // config.ppo.minibatches
    if contexts % shards:
        raise _error("ppo.minibatches", config.ppo.minibatches, f"its {contexts} contexts do not divide over {over}")
    for stage, rows in (("sft", config.sft.rows), ("reward", config.sft.rows), ("ppo", config.ppo.contexts)):
        parts = config[stage].accumulate * (config.ppo.minibatches if stage == "ppo" else 1)
        if rows % parts or (rows // parts) % shards:
            batch = f"config.ppo.contexts={rows} over minibatches" if stage == "ppo" else f"config.sft.rows={rows}"
            rule = f"--{batch} and micro-batches do not divide over {over}"
            raise _error(f"{stage}.accumulate", config[stage].accumulate, rule)
    return {
        "devices": devices,
        "mesh": mesh,
        "shards": shards,
        "sft_rows_per_shard": config.sft.rows // shards,
        "sft_tokens_per_step": config.sft.rows * config.sft.row_tokens,
        "evaluation_batch_per_shard": config.evaluation.batch // shards,
        "contexts_per_shard": config.ppo.contexts // shards,
        "replies": replies,
        "replies_per_shard": replies // shards,
        "minibatch_replies": minibatch,
        "minibatch_replies_per_shard": minibatch // shards,
        "updates_per_iteration": config.ppo.epochs * config.ppo.minibatches,
        "reply_row_tokens": config.data.context_tokens + config.data.reply_tokens,
    }


def _mesh(config: ConfigDict, devices: int) -> dict[str, int]:
    fsdp, tensor, data = config.mesh.fsdp, config.mesh.tensor, config.mesh.data
    if fsdp < 1 or tensor < 1 or devices % (fsdp * tensor):
        path, value = ("mesh.tensor", tensor) if devices % tensor else ("mesh.fsdp", fsdp)
        raise _error(path, value, f"fsdp {fsdp} x tensor {tensor} does not divide the {devices} device(s)")
    left = devices // (fsdp * tensor)
    if data not in (-1, left):
        raise _error("mesh.data", data, f"{devices} device(s) leave {left} for this axis: use {left}, or -1 for all")
    return {"data": left, "fsdp": fsdp, "tensor": tensor}


def _validate_data(config: ConfigDict) -> None:
    data = config.data
    if data.metadata and not CORPORA[data.dataset].metadata:
        raise _error("data.metadata", data.metadata, f"--config.data.dataset={data.dataset} has its own; leave it out")
    least = data.act_items + 3  # the act, <|say|>, one word and <|end|>
    if data.reply_tokens < least:
        rule = f"must be at least {least}, to hold an act of --config.data.act_items={data.act_items} and a word"
        raise _error("data.reply_tokens", data.reply_tokens, rule)


def _validate_inputs(config: ConfigDict) -> None:
    """What the config names is there."""
    data, init, simulated = config.data, config.model.init, is_simulated(config.data.dataset)
    if not simulated and not data.dir and not data.hub:
        rule = f"{data.dataset} needs the folder with its files: --config.data.dir=FOLDER (the README says which files)"
        raise _error("data.dir", data.dir, rule)
    if data.dir and not simulated and not is_folder(data.dir):
        raise _error("data.dir", data.dir, "there is no such folder")
    if data.metadata and not is_file(data.metadata):
        raise _error("data.metadata", data.metadata, "there is no such file; `python -m crs_jax.data.imdb` makes one")
    if config.signals.log:
        read_log(pathlib.Path(config.signals.log))
    local = is_folder(init)
    if not local and init != "scratch" and not re.fullmatch(r"[\w.-]+(/[\w.-]+(@[\w.-]+)?)?", init):
        raise _error("model.init", init, "there is no such folder, and it is no hub id either")
    decoder = DECODERS[config.model.decoder]
    if not local and init != "scratch" and decoder.tokenizer not in ("", config.tokenizer.kind):
        rule = f"a {decoder.title} from the hub knows its own tokens only: give --config.tokenizer.kind="
        raise _error("model.init", init, rule + decoder.tokenizer)
    if config.reward.function:
        load(config.reward.function)


def _validate_rates(config: ConfigDict) -> None:
    """What is above 1 after its multiple throws weights away at the first step."""
    for stage, names in (
        ("sft", ("new_rate", "query_rate")),
        ("reward", ("new_rate",)),
        ("ppo", ("slate_rate", "query_rate", "value_rate")),
    ):
        rate = config[stage].learning_rate
        for name in names:
            multiple = config[stage][name] * (config.sft.new_rate if (stage, name) == ("sft", "query_rate") else 1.0)
            if rate * multiple > 1.0:
                rule = f"times --config.{stage}.learning_rate={rate:g} this is a rate of {rate * multiple:g}, above 1"
                raise _error(f"{stage}.{name}", config[stage][name], rule)


def _validate_model(config: ConfigDict) -> None:
    model, data = config.model, config.data
    if model.width % model.heads:
        raise _error("model.heads", model.heads, f"must divide --config.model.width={model.width}")
    head = model.width // model.heads
    if model.attention == "cudnn" and (model.dtype != "bfloat16" or head % 8 or head > 128):
        rule = "needs --config.model.dtype=bfloat16 and heads whose width is a multiple of 8, at most 128"
        raise _error("model.attention", model.attention, f"{rule}; here {model.dtype} and {head}")
    if config.sft.row_tokens > model.positions:
        rule = f"must be at most --config.model.positions={model.positions}"
        raise _error("sft.row_tokens", config.sft.row_tokens, rule)
    if data.context_tokens + data.reply_tokens > model.positions:
        rule = (
            f"with --config.data.reply_tokens={data.reply_tokens} this is "
            f"{data.context_tokens + data.reply_tokens} tokens, above --config.model.positions={model.positions}"
        )
        raise _error("data.context_tokens", data.context_tokens, rule)
    if model.transfer and stages(config) != ("evaluate",):
        raise _error("model.transfer", model.transfer, "nothing is trained then: give --config.stages=evaluate")
    if not model.init:
        raise _error("model.init", model.init, "must be scratch, a folder or a hub id")


def _validate_ppo(config: ConfigDict) -> None:
    ppo, algorithm = config.ppo, ALGORITHMS[config.algorithm]
    looks_ahead = algorithm.whitens and not algorithm.lists
    if ppo.contexts % ppo.minibatches:
        rule = f"must divide --config.ppo.contexts={ppo.contexts}: a context's replies stay in one minibatch"
        raise _error("ppo.minibatches", ppo.minibatches, rule)
    for part in ("act", "word"):
        if ppo[f"{part}_kl_target"] > 0 and ppo[f"{part}_kl"] == 0:
            rule = f"a coefficient of 0 never moves: give --config.ppo.{part}_kl a first value above 0"
            raise _error(f"ppo.{part}_kl_target", ppo[f"{part}_kl_target"], rule)
    if ppo.hr_floor > 0 and not (ppo.validation_contexts and config.data.validation_dialogues):
        rule = "needs --config.ppo.validation_contexts and --config.data.validation_dialogues above 0 to look at"
        raise _error("ppo.hr_floor", ppo.hr_floor, rule)
    if ppo.value_warmup and (not looks_ahead or ppo.group_baseline):
        rule = "must be 0 without a value function: --config.algorithm=ppo --config.ppo.group_baseline=false has one"
        raise _error("ppo.value_warmup", ppo.value_warmup, rule)
    if ppo.value_warmup >= ppo.iterations > 0:
        rule = f"must be below --config.ppo.iterations={ppo.iterations}, or the policy never learns"
        raise _error("ppo.value_warmup", ppo.value_warmup, rule)
    if ppo.turns > 1 and not looks_ahead:
        rule = f"must be 1 for --config.algorithm={config.algorithm}, which has no value function to look ahead with"
        raise _error("ppo.turns", ppo.turns, rule)
    if ppo.turns > 1 and ppo.group_baseline:
        rule = "must be 1 with --config.ppo.group_baseline=true: replies of later turns have no others to compare with"
        raise _error("ppo.turns", ppo.turns, rule)
    if ppo.turns > 1 and ppo.buckets > 1:
        raise _error("ppo.buckets", ppo.buckets, "must be 1 where episodes have several turns, whose contexts grow")
    if ppo.turns > 1 and ppo.seeker == "simulator" and not is_simulated(config.data.dataset):
        rule = f"there are no simulated seekers in --config.data.dataset={config.data.dataset}; take model"
        raise _error("ppo.seeker", ppo.seeker, rule)
    reward = config.reward
    if bool(reward.function) != (reward.delta != 0):
        rule = "a reward of one's own needs both, --config.reward.function=FILE.py:NAME and a delta other than 0"
        raise _error("reward.delta", reward.delta, rule)
    if reward.spread > 0 and reward.ensemble == 1:
        rule = "one reward model has no spread: give --config.reward.ensemble=2 or more"
        raise _error("reward.spread", reward.spread, rule)
    if "ppo" in stages(config) and not any((*weights(reward), reward.delta)):
        rule = "all other weights are 0 too, so that every reply has the same reward"
        raise _error("reward.alpha", reward.alpha, rule)


def _get(config: ConfigDict, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        if key not in value:
            raise InputError(f"config: the setting {path} is missing; start from configs.common.get_config()")
        value = value[key]
    return value


def _error(path: str, value: Any, rule: str) -> InputError:
    given = f"={clipped(repr(value), 200)}" if value != "" else ""
    return InputError(f"--config.{path}{given}: {rule}")
