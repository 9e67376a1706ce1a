"""What is said where memory does not suffice, the host's or a device's: one line with what takes less of it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from crs_jax.runtime.errors import InputError

# By stage: what a folder that has begun goes on with, and what is another result.
LESS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prepare": (("encoder.batch_tokens",), ("data.max_train_dialogues",)),
    "sft": (("sft.accumulate", "evaluation.batch", "model.remat"), ("head.batch", "sft.rows")),
    "reward": (("reward.accumulate", "evaluation.batch", "model.remat"), ("sft.rows", "reward.ensemble")),
    "ppo": (("ppo.accumulate", "evaluation.batch", "model.remat"), ("ppo.contexts", "ppo.slate_batches")),
    "evaluate": (("evaluation.batch",), ()),
}
WAYS = {"accumulate": "raise", "remat": "set to true"}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, NumPy's or XLA's way to say so."""
    if isinstance(error, MemoryError):
        return True
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def fitting(stage: str, config: ConfigDict, workdir: pathlib.Path) -> Iterator[None]:
    """Turns an error of memory in a stage into one `InputError` that names the settings to change."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        same, other = (", ".join(_way(config, path) for path in paths) for paths in LESS[stage])
        more = f"; or, in another --workdir, {other}" if other else ""
        raise InputError(
            f"{stage}: out of memory; {same}, and give the command again: what was saved in {workdir} is kept and gone "
            f"on from{more}"
        ) from error


@contextlib.contextmanager
def loading(folder: pathlib.Path) -> Iterator[None]:
    """The same for a model that is read to be used, whose sizes are what they are."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise InputError(
            f"--workdir={folder}: its models do not fit the memory that is free; end other programs, or set "
            "JAX_PLATFORMS=cpu to use the host's memory in place of a device's"
        ) from error


def _way(config: ConfigDict, path: str) -> str:
    section, name = path.split(".")
    return f"{WAYS.get(name, 'lower')} --config.{path} ({config[section][name]} now)"
