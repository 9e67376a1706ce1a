"""What a finished run of a sweep leaves for others: all it found where the settings are the same, or its models."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from crs_jax import flags as command_line
from crs_jax.runtime.identity import flatten, identity
from crs_jax.runtime.metrics import METRICS_LINES
from crs_jax.runtime.versions import read_log, read_with_version, settings_now, write_log, write_versioned

RECORD = "sweep.json"
"""Written into a run's workdir when it has ended well: its command, settings and seconds."""
# Where prepared data lie and who else is told, not what comes out.
ELSEWHERE = ("data.cache_dir", "wandb.project", "wandb.entity")
MODELS = ("reward", "sft")  # stages whose models are shared, the latest first


def resolved(line: Sequence[str]) -> ConfigDict:
    """The config that a run's flags give; `InputError` where they cannot be used."""
    return command_line.parse(["main", *line], flags.FlagValues()).config


def settings(config: ConfigDict) -> dict[str, Any]:
    """All that decides a run, flat, as JSON gives it back."""
    return {name: value for name, value in flatten(config.to_dict()).items() if name not in ELSEWHERE}


def record(workdir: pathlib.Path, line: Sequence[str], config: ConfigDict, seconds: float) -> None:
    """Notes that the run has ended well."""
    write_versioned(workdir / RECORD, {"command": list(line), "settings": settings(config), "seconds": seconds})


def recorded(path: pathlib.Path) -> dict[str, Any]:
    """The settings of the run that a record is of."""
    found, version = read_with_version(path)
    return settings_now(found.get("settings", {}), version)


def is_done(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Whether a workdir holds the finished run of these settings."""
    path = workdir / RECORD
    return path.exists() and recorded(path) == settings(config)


def twin(config: ConfigDict, others: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The finished run of the same settings among other workdirs."""
    return next((other for other in others if is_done(other, config)), None)


def share(config: ConfigDict, workdir: pathlib.Path, others: Sequence[pathlib.Path]) -> str:
    """Copies the models of the latest stage that a finished run made with the same settings; returns the stage or "".

    A run finds them as its own, and checks them against its config. Nothing is copied over what is there; what these
    stages logged comes along.
    """
    if (workdir / "checkpoints").exists() or config.model.transfer:
        return ""
    for at, stage in enumerate(MODELS):
        wanted = identity(config, stage)
        for other in others:
            if not (other / "checkpoints" / stage).exists():
                continue
            made = recorded(other / RECORD)
            if all(made.get(name) == value for name, value in wanted.items()):
                copy(other, workdir, MODELS[at:])
                return stage
    return ""


def copy(other: pathlib.Path, workdir: pathlib.Path, stages: Sequence[str]) -> None:
    """The models of stages, their tokenizer and their logs; the checkpoints appear last and at once."""
    part = workdir / "checkpoints.part"
    shutil.rmtree(part, ignore_errors=True)
    for stage in stages:
        shutil.copytree(other / "checkpoints" / stage, part / stage)
    if (other / "tokenizer").exists():
        shutil.copytree(other / "tokenizer", workdir / "tokenizer", dirs_exist_ok=True)
    if (other / METRICS_LINES).exists():
        logged = read_log(other / METRICS_LINES)
        write_log(workdir / METRICS_LINES, [entry for entry in logged if entry["stage"] in ("head", *stages)])
    part.rename(workdir / "checkpoints")
