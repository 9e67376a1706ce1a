"""Files as a stranger might have changed them: bytes, fields of JSON, headers and arrays."""

import copy
import json
import pathlib
import random

import numpy as np
from safetensors.numpy import load_file, save_file

ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 65536, 1.5, 1e400, [], [[]], ["a", 1], [0.5], {}, {"a": {}}),
    *("", "1", "ppo,sft", "../../x", "x" * 20_000, "\ud800", "a\0b"),
)
NUMBERS = (np.nan, np.inf, -np.inf, -1.0, 1e38, 2.0**31, 0.0)


def at(value, path):
    for key in path:
        value = value[key]
    return value


def places(value, path=()):
    """All places of a JSON value, as keys from its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change_field(value, rng: random.Random) -> None:
    path = rng.choice(list(places(value)) or [()])
    around, key = at(value, path[:-1]), path[-1]
    how = rng.random()
    if how < 0.7:
        around[key] = copy.deepcopy(rng.choice(ODD))
    elif how < 0.85:
        del around[key]
    elif isinstance(around, dict):
        around[rng.choice(("odd", "__class__", "../x", "é"))] = rng.choice(ODD)
    else:
        around.append(copy.deepcopy(rng.choice(around)))


def change_json(path: pathlib.Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    row = rng.randrange(len(lines))
    value = json.loads(lines[row])
    change_field(value, rng)
    lines[row] = json.dumps(value)
    path.write_text("\n".join(lines))


def change_header(path: pathlib.Path, rng: random.Random) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change_field(header, rng)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def change_array(path: pathlib.Path, rng: random.Random) -> None:
    arrays = load_file(path)
    name = rng.choice([*sorted(arrays), *(name for name in sorted(arrays) if arrays[name].dtype.kind != "f")])
    array = arrays[name] = arrays[name].copy()
    number = rng.choice(NUMBERS) if array.dtype.kind == "f" else rng.choice((-1, 1, 2**31 - 1, -(2**31), len(array)))
    if array.size:
        array.reshape(-1)[rng.randrange(array.size)] = number
    if rng.random() < 0.2:
        arrays[name] = rng.choice((array[:-1] if array.ndim else array, array.astype(np.float64), array[None]))
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)


def change_bytes(path: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    near = rng.choice((len(data), 4096, 64))  # headers are where most can go wrong
    place = rng.randrange(min(near, len(data)))
    how = rng.random()
    if how < 0.6:
        data[place] ^= 1 << rng.randrange(8)
    elif how < 0.7:
        data[place : place + 8] = rng.randbytes(8)
    elif how < 0.8:
        del data[place:]
    elif how < 0.9:
        data[place:place] = rng.choice((b"[" * 100_000, b"{}", b"\x00", b"9" * 5000, data[:place]))
    else:
        del data[place : place + rng.randrange(1, 9)]
    path.write_bytes(data)


def change(path: pathlib.Path, rng: random.Random) -> None:
    """One change of the file, of bytes or of what they mean."""
    ways = [change_bytes]
    ways += [change_header, change_array, change_array] if path.suffix == ".safetensors" else [change_json, change_json]
    rng.choice(ways)(path, rng)
