"""Safetensors files of strangers: the header is checked before anything is allocated or parsed by the library."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from crs_jax.runtime.errors import InputError

MOST_HEADER = 2**24  # bytes; that of GPT-2 XL has 60,000
BYTES = {"F32": 4, "I32": 4, "I64": 8}
Shape = tuple[int, ...]


def read_shapes(path: pathlib.Path) -> dict[str, tuple[str, Shape]]:
    """Name to type and shape of a file's arrays; `InputError` where they are not all that the file holds."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            raise InputError(f"{path}: its header of {length:,} bytes does not fit a file of {size:,}")
        header = file.read(length)
    try:
        found = json.loads(header.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
        if found.pop("__metadata__", {}) not in ({}, {"format": "pt"}):
            raise ValueError("__metadata__ is not what was written")
        places = {name: _entry(name, entry) for name, entry in found.items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header is not that of safetensors: {error!s:.200}") from None
    at = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda place: place[1][2:]):
        if start != at:
            raise InputError(f"{path}: {name:.200} begins at byte {start}, expected {at}")
        at = end
    if at != size - 8 - length:
        raise InputError(f"{path}: its arrays take {at:,} bytes, it holds {size - 8 - length:,}")
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in places.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _entry(name: str, entry: Any) -> tuple[str, Shape, int, int]:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name:.80} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for numbers, most in ((shape, 8), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > most or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name:.80} has shape {shape!r:.80} at {offsets!r:.80}")
    if not isinstance(dtype, str) or dtype not in BYTES or len(offsets) != 2:
        raise ValueError(f"{name:.80} is of type {dtype!r:.80}, expected one of {', '.join(BYTES)}")
    if offsets[1] - offsets[0] != BYTES[dtype] * math.prod(shape):
        raise ValueError(f"{name:.80} of shape {shape!r:.80} does not take the bytes {offsets!r:.80}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def refuse_other(path: pathlib.Path, found: Mapping[str, tuple[str, Shape]], expected: Mapping[str, Shape]) -> None:
    """`InputError` for the first array that is missing, unknown, no float32 or of another shape than expected."""
    for name in sorted({*found, *expected}):
        dtype, shape = found.get(name, ("", ()))
        if name not in expected:
            raise InputError(f"{path}: {name:.200} is no array of this model; another version wrote it")
        if dtype != "F32" or shape != expected[name]:
            given = f"is {dtype} {shape}" if dtype else "is missing"
            raise InputError(f"{path}: {name} {given}, the model has F32 {expected[name]}; another version wrote it")


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file whose shapes were read; `InputError` for a number that is not finite."""
    arrays = load_file(path)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {name} holds a number that is not finite")
    return arrays
