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
from crs_jax.runtime.json_files import read_json, read_json_lines, write_json, write_json_lines

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
    write_json(workdir / RECORD, {"command": list(line), "settings": settings(config), "seconds": seconds})


def is_done(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Whether a workdir holds the finished run of these settings."""
    path = workdir / RECORD
    return path.exists() and read_json(path).get("settings") == settings(config)


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
            made = read_json(other / RECORD).get("settings", {})
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
    if (other / "metrics.jsonl").exists():
        logged = read_json_lines(other / "metrics.jsonl")
        write_json_lines(workdir / "metrics.jsonl", [entry for entry in logged if entry["stage"] in ("head", *stages)])
    part.rename(workdir / "checkpoints")
