"""Checkpoints of the stages, by orbax: whole training states, and the result a later stage reads.

Each carries the part of the config it depends on; a checkpoint made with another is refused, naming the difference.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental.multihost_utils import broadcast_one_to_all
from ml_collections import ConfigDict

from crs_jax.errors import InputError

# What fails in a thread that saves is raised again where the save is waited for; told there, it is told once.
_TOLD_AGAIN = ("_SignalingThread.run() raised", "in background save thread")
logging.getLogger("absl").addFilter(lambda record: not any(text in record.getMessage() for text in _TOLD_AGAIN))

# What decides a stage's result: its own sections and those of the stages before it.
SECTIONS = {
    "sft": ("head", "seed", "data", "simulator", "tokenizer", "encoder", "model", "mesh", "sft"),
    "reward": ("signals", "reward"),
    "seeker": ("seeker",),  # the first part of the stage ppo, where it has several turns
    "ppo": ("ppo", "algorithm"),
}
# Settings that may change without touching a stage's result.
FREE = {
    "sft": (
        *("data.cache_dir", "data.dir", "data.pipeline", "data.on_error", "encoder.batch_tokens"),
        *("model.value", "model.remat", "model.matmul", "model.attention"),
        *("mesh.data", "mesh.fsdp"),  # mesh.tensor sets how far tables are padded
        "model.transfer",  # trains nothing
    ),
    "reward": tuple(
        f"reward.{name}" for name in ("alpha", "beta", "gamma", "delta", "function", "clip", "relevance", "spread")
    ),
    "seeker": (),
    "ppo": (),
}


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict to `section.field` keys; tuples as lists, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def identity(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The settings that decide the result of `stage`, flat."""
    order = list(SECTIONS)
    flat = flatten(config.to_dict())
    kept: dict[str, Any] = {}
    for earlier in order[: order.index(stage) + 1]:
        free = FREE[earlier]
        if stage == "ppo":  # where the reward's weights and the value function count after all
            free = tuple(name for name in free if not name.startswith("reward.") and name != "model.value")
        for name, value in flat.items():
            if name.split(".")[0] in SECTIONS[earlier] and name not in free:
                kept[name] = value
    return kept


def digest(tree: Any) -> str:
    """Short fingerprint of a tree of arrays: sums of their bits as integers, so the same on every mesh."""

    def bits(leaf: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)

    sums = [int(total) for total in jax.tree.leaves(jax.jit(lambda tree: jax.tree.map(bits, tree))(tree))]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def done_meta(workdir: pathlib.Path, stage: str) -> dict[str, Any]:
    """Meta of a stage that a workdir holds whole; empty where it holds none or a part."""
    folder = (workdir / "checkpoints" / stage).absolute()
    if not broadcast_one_to_all(np.asarray(folder.is_dir())):  # all processes go the same way
        return {}
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        step = manager.latest_step()
        if step is None:
            return {}
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    return meta if meta["done"] else {}


def load_result(workdir: pathlib.Path, stage: str) -> Any:
    """Result of a finished stage of any run, host arrays in the sizes they were saved in; None where there is none."""
    folder = (workdir / "checkpoints" / stage).absolute()
    if not done_meta(workdir, stage):
        return None
    options = ocp.CheckpointManagerOptions(create=False)
    handlers = {name: ocp.StandardCheckpointHandler() for name in ("state", "result")}
    handlers |= {"meta": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        step = manager.latest_step()
        saved = manager.item_metadata(step)["result"]
        like = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), saved.tree if hasattr(saved, "tree") else saved)
        return manager.restore(step, args=ocp.args.Composite(result=ocp.args.StandardRestore(like)))["result"]


class Checkpoints:
    """The checkpoints of one stage in one workdir.

    Args:
      workdir: the run's folder.
      stage: sft, reward, seeker or ppo.
      config: the whole config.
      inputs: name to fingerprint of what else the result depends on: the data, the models of earlier stages.
      keep: how many training states to keep.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        stage: str,
        config: ConfigDict,
        inputs: dict[str, str] | None = None,
        keep: int = 2,
    ):
        self.stage = stage
        self.folder = (workdir / "checkpoints" / stage).absolute()
        self.identity = identity(config, stage)
        self.inputs = inputs or {}
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self._check()

    def _check(self) -> None:
        step = self.manager.latest_step()
        if step is None:
            return
        meta = self.meta(step)
        made = meta["config"]
        for name in sorted(self.inputs.keys() & meta["inputs"].keys()):
            if meta["inputs"][name] != self.inputs[name]:
                raise InputError(
                    f"{self.folder}: made from another {name} than this run's; use another --workdir, or delete that "
                    "folder to train again"
                )
        for name in sorted(made.keys() | self.identity.keys()):
            if made.get(name) != self.identity.get(name):
                raise InputError(
                    f"{self.folder}: made with config.{name}={made.get(name)!r}, now {self.identity.get(name)!r}; "
                    f"use another --workdir, the old value, or delete that folder to train again"
                )

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays: config, done, and the stage's own entries."""
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def latest(self) -> tuple[int | None, dict[str, Any]]:
        """The newest step and its meta; (None, {}) where there is none."""
        step = self.manager.latest_step()
        return (None, {}) if step is None else (step, self.meta(step))

    def save(self, step: int, state: Any, result: Any, **meta: Any) -> None:
        """Starts an asynchronous, atomic save of the training state and of the result so far."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                result=ocp.args.StandardSave(result),
                meta=ocp.args.JsonSave({"config": self.identity, "inputs": self.inputs, **meta}),
            ),
            force=True,
        )

    def restore(self, step: int, kind: str, like: Any) -> Any:
        """`state` or `result` at `step`, with the shapes, types and shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self.manager.restore(step, args=ocp.args.Composite(**{kind: ocp.args.StandardRestore(abstract)}))[kind]

    def close(self) -> None:
        """Waits for saves under way."""
        self.manager.wait_until_finished()
        self.manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes, so that an error in a step does not cost the save before it."""
        self.close()
