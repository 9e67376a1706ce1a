"""What a run logs: `metrics.jsonl`, TensorBoard, and the JSON files that it leaves.

Every file is strictly valid JSON (RFC 8259), which has no NaN or infinity: a number that is not finite becomes null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.tensorboard import Board

METRICS_LINES = "metrics.jsonl"
MOST_JSON = 2**26  # bytes of one object


def plain(value: Any) -> Any:
    """The same value in the types JSON has.

    Mappings (ConfigDict too), sequences, sets (sorted), dataclasses, NumPy and JAX arrays, paths; a number that is not
    finite becomes None. `TypeError` for anything else.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":  # bfloat16 has kind V, and no exact Python type
            array = array.astype(np.float32)
        return plain(array.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON text; one line unless `indent` is given."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes UTF-8 so that a reader, or a run cut off in the middle, sees the old file or the new one, never a part."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any, enabled: bool = True) -> None:
    """Writes `value` as indented JSON, atomically; nothing where not `enabled` (every process but the first)."""
    if enabled:
        write_atomically(path, to_json(value, indent=2) + "\n")


def write_json_lines(path: pathlib.Path, values: Iterable[Any], enabled: bool = True) -> None:
    """Writes one JSON value a line, atomically."""
    if enabled:
        write_atomically(path, "".join(to_json(value) + "\n" for value in values))


def from_json(text: str) -> Any:
    """The value of a JSON text; a number that is not finite, or would not be as a float, is None."""
    return json.loads(text, parse_constant=lambda _: None, parse_int=_within_float)


def _within_float(digits: str) -> int | None:
    number = int(digits)
    return number if abs(number) < 2**1023 else None


def read_json(path: pathlib.Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The object in a JSON file; `InputError` names file and line of what cannot be read, or says that it has more than
    `most` bytes or is nested too deeply. NaN is read as None.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise InputError(f"{path}: has more than {most:,} bytes, which no file of this kind has")
        value = from_json(data.decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a run's workdir holds it once a stage has ended") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); delete the file and run again") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, too many [
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: holds a {type(value).__name__}, expected an object")
    return value


def numbered_json_lines(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a file; no file reads as none. `InputError` names file and line."""
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")  # str.splitlines would cut at U+2028 inside a text
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = from_json(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"{path}:{number}: not JSON ({reason}); delete the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: holds a {type(record).__name__}, expected an object")
        yield number, record


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; see `numbered_json_lines`."""
    return [record for _, record in numbered_json_lines(path)]


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
            self._drop_torn_line()
            self._file = self._open()

    def _open(self):
        return open(self.path, "a", encoding="utf-8", errors="replace", newline="\n")

    def _drop_torn_line(self) -> None:
        """A run killed while writing leaves a last line without its end."""
        if self.path.exists():
            data = self.path.read_bytes()
            if data and not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

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
            the names `stage` and `step`.
        """
        if not self._enabled:
            return
        step = operator.index(step)
        numbers = {str(name): _scalar(str(name), value) for name, value in values.items()}
        if taken := {"stage", "step"} & set(numbers):
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
        records = read_json_lines(self.path)
        kept = [r for r in records if not (r.get("stage") == stage and _step(r) > step)]
        if len(kept) < len(records):
            if self._wandb is not None:
                self._wandb.before_drop(records)
            write_json_lines(self.path, kept)
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
