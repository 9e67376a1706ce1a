"""Arguments of the Python API: one that cannot be used is a sentence that names it.

Most errors are found below the API, in what the programs use too, and name flags: `in_python` gives them the names that
a caller wrote.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from crs_jax.runtime.errors import InputError

NAMES = {
    "workdir": "workdir",
    "data_dir": "data_dir",
    "model": "model",
    "out": "folder",
    "overwrite": "overwrite=True",
    "trust-code": "trust_code=True",
    "config": "config",
    "helpfull": "`python -m crs_jax.main --helpfull`",
}
"""Flag to argument."""
MOST_SEED = 2**32 - 1  # jax.random.key keeps 32 bits of one
TEMPERATURES = (1e-6, 1e6)  # beyond, float32 logits overflow, or what is ruled out is not
_flags = False


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Within it errors name flags: a program's user has written these."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def in_python(message: str) -> str:
    """An error's text with arguments where it names flags; as it is for the user of a program."""
    if _flags:
        return message
    first = rf"^--({'|'.join(NAMES)})=(.*?)(?=: )"
    message = re.sub(first, lambda found: f"{NAMES[found[1]].partition('=')[0]}={found[2]!r}", message)
    message = re.sub(r"--(?:no)?config\.", "config.", message)
    return re.sub(rf"--({'|'.join(NAMES)})(?![\w-])", lambda found: NAMES[found[1]], message)


def text(name: str, value: Any) -> str:
    """`value`, which must be text."""
    return value if isinstance(value, str) else _refuse(name, value, "text")


def path(name: str, value: Any) -> pathlib.Path:
    """The path that `value` is, `~` resolved."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        _refuse(name, value, "a path, as text or a pathlib.Path")
    try:
        os.fsdecode(os.fsencode(value)).encode("utf-8")
    except UnicodeEncodeError:  # a locale without it, or a name that is not in it
        _refuse(name, ascii(value), "a path in UTF-8, and start Python with PYTHONUTF8=1 where the locale has none")
    return pathlib.Path(value).expanduser()


def boolean(name: str, value: Any) -> bool:
    """`value`, which must be True or False, NumPy's included."""
    return bool(value) if type(value).__name__ in ("bool", "bool_") else _refuse(name, value, "True or False")


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, which must be a whole number in that range."""
    limit = f"at least {least}" + ("" if most is None else f" and at most {most}")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, value, f"a whole number of {limit}")
    if value < least or (most is not None and value > most):
        _refuse(name, value, limit)
    return int(value)


def temperature(name: str, value: Any) -> float:
    """`value`, which must be one: 0, or a number that logits can be divided by."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        _refuse(name, value, "a number of at least 0")
    least, most = TEMPERATURES
    if float(value) and not least <= float(value) <= most:
        _refuse(name, value, f"0, or a number from {least:g} to {most:,.0f}")
    return float(value)


def settings(name: str, value: Any) -> dict[str, Any]:
    """A mapping whose keys are names; None is an empty one."""
    if not isinstance(value, (Mapping, type(None))) or not all(isinstance(key, str) for key in value or ()):
        _refuse(name, value, "settings by name, such as {'ppo.iterations': 20}")
    return dict(value or {})


def _refuse(name: str, value: Any, expected: str) -> Any:
    raise InputError(f"{name}={' '.join(f'{value!r:.80}'.split())}: take {expected}")
