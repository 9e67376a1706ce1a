"""What a run logs: `metrics.jsonl`, TensorBoard, and W&B where it is asked for."""

from __future__ import annotations

import math
import operator
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from crs_jax.runtime.json_files import to_json
from crs_jax.runtime.tensorboard import Board
from crs_jax.runtime.versions import KEY, VERSION, read_log, write_log

METRICS_LINES = "metrics.jsonl"


class Follower(Protocol):
    """What else is told all that is logged (`runtime/weights_and_biases.py`)."""

    def open(self) -> None: ...

    def write(self, stage: str, step: int, values: Mapping[str, float | None]) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def histogram(self, name: str, values: np.ndarray) -> None: ...

    def summary(self, figures: Mapping[str, Any]) -> None: ...

    def before_drop(self, records: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self, failed: bool = False) -> None: ...


class MetricsWriter:
    """Appends a run's figures to `metrics.jsonl` and to TensorBoard, a TensorBoard run for each stage; to W&B if asked.

    Args:
      workdir: where `metrics.jsonl` and `tensorboard/` go.
      enabled: False on every process but the first: then nothing is written.
      tensorboard: False leaves TensorBoard out.
      wandb: a run on Weights & Biases.
    """

    def __init__(
        self, workdir: pathlib.Path, enabled: bool = True, tensorboard: bool = True, wandb: Follower | None = None
    ):
        self.workdir = pathlib.Path(workdir)
        self.path = self.workdir / METRICS_LINES
        self._board = self.workdir / "tensorboard"
        self._enabled, self._tensorboard = enabled, enabled and tensorboard
        self._wandb = wandb if enabled else None
        self._boards: dict[str, Board] = {}
        self._file = None
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
            self._file = self._open()

    def _open(self):
        return open(self.path, "a", encoding="utf-8", errors="replace", newline="\n")

    def _begin(self) -> None:
        """Cuts off a last line without its end, which a killed run leaves, and gives an older log today's version."""
        data = self.path.read_bytes() if self.path.exists() else b""
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)
        if not data.startswith(f"{to_json({KEY: VERSION})}\n".encode()):
            write_log(self.path, read_log(self.path))

    def _stage_board(self, stage: str, purge_step: int | None = None) -> Board:
        if purge_step is not None and stage in self._boards:
            self._boards.pop(stage).close()
        if stage not in self._boards:
            self._boards[stage] = Board(self._board / stage, purge_step)
        return self._boards[stage]

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs the scalars of one step, flushed before it returns.

        Args:
          stage: `sft`, `reward`, `ppo`...
          step: optimizer step or iteration of that stage.
          values: name to scalar (Python, NumPy or JAX, of one element; it is read from the device here). A value that
            is not finite is null in `metrics.jsonl`. `TypeError` for a value that is not a number, `ValueError` for
            the names `stage`, `step` and `format`.
        """
        if not self._enabled:
            return
        step = operator.index(step)
        numbers = {str(name): _scalar(str(name), value) for name, value in values.items()}
        if taken := {"stage", "step", KEY} & set(numbers):
            raise ValueError(f"a metric cannot be named {sorted(taken)[0]!r}")
        assert self._file is not None, "write after close"
        if self._wandb is not None:
            self._wandb.open()
        self._file.write(to_json({"stage": stage, "step": step, **numbers}) + "\n")
        self._file.flush()
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        if self._tensorboard and finite:
            self._stage_board(stage).scalars(step, finite)
        if self._wandb is not None:
            self._wandb.write(stage, step, finite)

    def text(self, stage: str, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard alone (`tensorboard.markdown` escapes what is to be shown as it is)."""
        if self._tensorboard:
            self._stage_board(stage).text(step, name, markdown)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Words and numbers in rows for W&B alone, with the next `write`."""
        if self._wandb is not None:
            self._wandb.table(name, columns, rows)

    def histogram(self, stage: str, step: int, name: str, values: Any) -> None:
        """A histogram of the finite values, any shape, for TensorBoard, and W&B with the next `write`."""
        array = np.asarray(values, np.float64).ravel()
        array = array[np.isfinite(array)]
        if array.size and self._tensorboard:
            self._stage_board(stage).histogram(step, name, array)
        if array.size and self._wandb is not None:
            self._wandb.histogram(name, array)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Figures of the whole run, as in `metrics.json`, for W&B's table of runs."""
        if self._wandb is not None:
            self._wandb.summary(figures)

    def drop_after(self, stage: str, step: int) -> None:
        """Forgets the stage's lines with a later step than `step` (-1: all), so that a resumed stage writes them once.

        TensorBoard hides them too; W&B keeps them, and is not sent them again. Call it before the resumed stage logs.
        """
        if not self._enabled:
            return
        assert self._file is not None, "drop_after after close"
        self._file.close()
        records = read_log(self.path)
        kept = [r for r in records if not (r.get("stage") == stage and _step(r) > step)]
        if len(kept) < len(records):
            if self._wandb is not None:
                self._wandb.before_drop(records)
            write_log(self.path, kept)
            if self._tensorboard:
                self._stage_board(stage, purge_step=step + 1)
        self._file = self._open()

    def close(self, failed: bool = False) -> None:
        """Flushes and closes; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for board in self._boards.values():
            board.close()
        self._boards.clear()
        if self._wandb is not None:
            self._wandb.close(failed)
        self._enabled, self._tensorboard, self._wandb = False, False, None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def _scalar(name: str, value: Any) -> float:
    if value is not None and not isinstance(value, (str, bytes)):
        try:
            return float(np.asarray(value).astype(np.float64).reshape(()))
        except (TypeError, ValueError):
            pass
    raise TypeError(f"metric {name!r} is {value!r}, expected one number")


def _step(record: Mapping[str, Any]) -> float:
    step = record.get("step")
    return step if isinstance(step, (int, float)) else math.inf
