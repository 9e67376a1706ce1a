"""What is left behind when a step meets a NaN or an infinity: the last good state, the batch, the metrics, an error."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from crs_jax.runtime.errors import TrainingHaltedError
from crs_jax.runtime.versions import write_versioned
from crs_jax.training.state import TrainState


def stop_if_halted(
    workdir: pathlib.Path, stage: str, step: int, metrics: dict[str, float], state: TrainState, batch: Any
) -> None:
    """Where the metrics of `step` carry the flag, leaves `workdir/halted/<stage>-<step>` and raises.

    The folder holds `state` (orbax: since the guard let no update through, the state before the bad one), `batch.npz`
    and `metrics.json`. Nothing is resumed from it: another run of the workdir starts at the stage's last checkpoint.

    Args:
      workdir: the run's folder.
      stage: sft, reward or ppo.
      step: number of the step the metrics are of.
      metrics: plain numbers.
      state: of the training now; `step` or a later one, which changed nothing.
      batch: the step's inputs, a tree of host arrays.

    Raises:
      TrainingHaltedError: names stage, step, what was not finite, and the folder.
    """
    if not metrics.get("halted", False):
        return
    folder = (workdir / "halted" / f"{stage}-{step}").absolute()
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        named: dict[str, Any] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves
        }
        np.savez(folder / "batch.npz", **named)
        write_versioned(folder / "metrics.json", metrics)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    raise TrainingHaltedError(
        f"{stage}: step {step} met a NaN or an infinity ({', '.join(bad) or 'in the gradient'}); the parameters are as "
        f"before that update. They, the batch and the metrics are in {folder}. Lower --config.{stage}.learning_rate or "
        "look at the batch"
    )
