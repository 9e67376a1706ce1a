"""Checkpoints of the stages, by orbax: whole training states, and the result a later stage reads.

Each carries the part of the config it depends on, fingerprints of what it was made from and a sum over its own bits; a
checkpoint made with or from anything else is refused, naming the difference, and so is a damaged one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental.multihost_utils import broadcast_one_to_all
from ml_collections import ConfigDict

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import FREE, identity
from crs_jax.runtime.storage import trouble
from crs_jax.runtime.versions import KEY, VERSION, check, parameters_now, parameters_then, settings_now

# What fails in a thread that saves is raised again where the save is waited for; told there, it is told once. What a
# kill left half written is removed.
_TOLD_AGAIN = ("_SignalingThread.run() raised", "in background save thread", "Attempted to create temporary directory")
logging.getLogger("absl").addFilter(lambda record: not any(text in record.getMessage() for text in _TOLD_AGAIN))
# Of reads that failed beside the one that is told.
logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in record.getMessage())

KEPT = 2  # training states of a stage


def _of_defaults(stage: str) -> dict[str, Any]:
    """The identity of a stage by the defaults, which a setting has that is newer than a checkpoint."""
    import configs.common

    return identity(configs.common.get_config(), stage)


@jax.jit
def _sums(tree: Any) -> Any:
    """The bits of each leaf, as integers, added up; the bits of a NaN in a narrower type are one NaN's."""

    def bits(leaf: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)

    return jax.tree.map(bits, tree)


def digest(tree: Any) -> str:
    """Short fingerprint of a tree of arrays: sums of their bits as integers, so the same on every mesh.

    They stand in the order of the first version's names, so that a new name leaves it the same.
    """
    sums = [int(total) for total in jax.tree.leaves(_sums(parameters_then(tree)))]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """All that a stage is after one of its steps: what it does next is a function of this, its config and its inputs.

    Data order, random keys and the place in the log are functions of the seed and `step`, so `step` is their position.
    Of the models it does not train (reference, reward) it has the fingerprints, in `Checkpoints.inputs`.

    Attributes:
      step: optimizer steps, in PPO iterations, since the stage began.
      done: no step is left.
      seconds: the stage has taken, over all its resumes.
      best_loss: lowest validation loss so far of each model that the stage fits; PPO has none.
      floor: the HR@10 on validation below which PPO stops; 0 for none.
      state: what a step changes: parameters (with the critic's), optimizer, KL coefficients, whether it was halted.
      result: the best so far, which later stages read; of PPO the policy and the reward's normaliser.
    """

    step: int
    done: bool
    seconds: float = 0.0
    best_loss: tuple[float, ...] = ()
    floor: float = 0.0
    state: Any = None
    result: Any = None


SCALARS = ("done", "seconds", "floor")
"""Of `Saved`: what stands in a checkpoint as it is."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries log of a file that is not as it was written."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _unless_late(hook: Callable[[Any], None], raised: Any) -> None:
    """Reads that were under way when another failed end after all who waited for them: nothing of it is said."""
    if "Event loop is closed" not in str(raised.exc_value):
        hook(raised)


sys.unraisablehook = functools.partial(_unless_late, sys.unraisablehook)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Whatever the libraries meet in a file that is not as it was written is one `InputError`, and all that is said."""
    with _quiet():
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError) or trouble(error) is not None:
                raise
            traceback.clear_frames(error.__traceback__)  # coroutines in them would warn that nobody awaits them
            raise InputError(
                f"{folder}: damaged, it cannot be read as it was written; delete that folder to go on from the "
                "checkpoint before it, or where there is none to train again"
            ) from error


@contextlib.contextmanager
def _manager(folder: pathlib.Path, **settings: Any) -> Iterator[ocp.CheckpointManager]:
    """For reading alone."""
    with _quiet(), ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False), **settings) as one:
        yield one


def _meta(manager: ocp.CheckpointManager, folder: pathlib.Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays: version, config by today's names, inputs, digests, scalars of `Saved`."""
    with _reading(folder / str(step)):
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        unstated = meta.get("layout", 1) if "digest" in meta else 1
        version = check(meta.get(KEY, unstated), folder / str(step))
        if meta["digest"].pop("meta") != _text_digest(meta):
            raise ValueError("meta is not what was saved")
        meta[KEY], meta["config"] = version, settings_now(meta["config"], version)
    if meta.get("step", step) != step:  # one of an older version does not say
        raise InputError(
            f"{folder / str(step)}: holds step {meta['step']!r:.80}; give the folder its own name again, or delete it"
        )
    return meta


def _text_digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _same(kind: str, found: Any, meta: dict[str, Any]) -> Any:
    """What was read, by today's names, where its bits add up to what they were when it was saved."""
    found = parameters_now(found, meta[KEY])
    if meta["digest"][kind] != digest(found):
        raise ValueError(f"{kind} has other bits than were saved")
    return found


def done_meta(workdir: pathlib.Path, stage: str) -> dict[str, Any]:
    """Meta of a stage that a workdir holds whole; empty where it holds none or a part."""
    folder = (workdir / "checkpoints" / stage).absolute()
    if not broadcast_one_to_all(np.asarray(folder.is_dir())):  # all processes go the same way
        return {}
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return {}
        meta = _meta(manager, folder, step)
    return meta if meta["done"] else {}


def load_result(workdir: pathlib.Path, stage: str) -> Any:
    """Result of a finished stage of any run, host arrays in the sizes they were saved in; None where there is none."""
    folder = (workdir / "checkpoints" / stage).absolute()
    if not (meta := done_meta(workdir, stage)):
        return None
    handlers = {name: ocp.StandardCheckpointHandler() for name in ("state", "result")}
    handlers |= {"meta": ocp.JsonCheckpointHandler()}
    with _manager(folder, item_handlers=handlers) as manager:
        step = manager.latest_step()
        with _reading(folder / str(step)):
            saved = manager.item_metadata(step)["result"]
            like = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), saved.tree if hasattr(saved, "tree") else saved)
            found = manager.restore(step, args=ocp.args.Composite(result=ocp.args.StandardRestore(like)))["result"]
            return _same("result", found, meta)


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
        keep: int = KEPT,
    ):
        self.stage = stage
        self.folder = (workdir / "checkpoints" / stage).absolute()
        self.identity = identity(config, stage)
        self.inputs = inputs or {}
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        with _quiet():
            self.manager = ocp.CheckpointManager(self.folder, options=options)
        self._check()

    def _check(self) -> None:
        step = self.manager.latest_step()
        if step is None:
            return
        meta = _meta(self.manager, self.folder, step)
        made = _of_defaults(self.stage) | meta["config"]
        for name in sorted(self.inputs.keys() & meta["inputs"].keys()):
            if meta["inputs"][name] != self.inputs[name]:
                raise InputError(
                    f"{self.folder}: made from another {name} than this run's; use another --workdir, or delete that "
                    "folder to train again"
                )
        free = {name for names in FREE.values() for name in names}  # of an older version, where they were not
        for name in sorted(made.keys() - (free - self.identity.keys()) | self.identity.keys()):
            if made.get(name) != self.identity.get(name):
                raise InputError(
                    f"{self.folder}: made with config.{name}={made.get(name)!r}, now {self.identity.get(name)!r}; "
                    f"use another --workdir, the old value, or delete that folder to train again"
                )

    def latest(self) -> Saved | None:
        """The newest, its arrays still on disk (`restore`); None where there is none."""
        step = self.manager.latest_step()
        if step is None:
            return None
        meta = _meta(self.manager, self.folder, step)
        return Saved(step=step, best_loss=tuple(meta["best_loss"]), **{name: meta[name] for name in SCALARS})

    def save(self, saved: Saved) -> None:
        """Starts an asynchronous, atomic save."""
        meta: dict[str, Any] = {
            **{name: getattr(saved, name) for name in SCALARS},
            "step": saved.step,
            "config": self.identity,
            "inputs": self.inputs,
            "best_loss": list(saved.best_loss),
            KEY: VERSION,
            "digest": {"state": digest(saved.state), "result": digest(saved.result)},
        }
        meta["digest"]["meta"] = _text_digest(meta)
        self.manager.save(
            saved.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(saved.state),
                result=ocp.args.StandardSave(saved.result),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def restore(self, step: int, kind: str, like: Any) -> Any:
        """`state` or `result` at `step`, with the shapes, types and shardings of `like`, on whatever mesh these are."""
        abstract, folder = jax.tree.map(ocp.utils.to_shape_dtype_struct, like), self.folder / str(step)
        meta = _meta(self.manager, self.folder, step)
        with _reading(folder):
            args = ocp.args.Composite(**{kind: ocp.args.StandardRestore(parameters_then(abstract, meta[KEY]))})
            return _same(kind, self.manager.restore(step, args=args)[kind], meta)

    def close(self) -> None:
        """Waits for saves under way."""
        self.manager.wait_until_finished()
        self.manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes, so that an error in a step does not cost the save before it."""
        self.close()
