"""JSON files, strictly valid (RFC 8259), which has no NaN or infinity: a number that is not finite becomes null."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from crs_jax.runtime.errors import InputError

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
