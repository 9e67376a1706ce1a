"""Finds the function that a flag names: a user's own reward (`training/own_reward.py`)."""

from __future__ import annotations

import hashlib
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.python_file import import_file

FLAG = "--config.reward.function"


def load(text: str) -> tuple[Callable[..., Any], str]:
    """The function that `FILE.py:NAME` or `package.module:NAME` names, and a fingerprint of its file.

    `InputError` says which part cannot be found, or what importing it raised.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise InputError(f"{FLAG}={text}: write FILE.py:NAME or package.module:NAME")
    try:
        if where.endswith(".py"):
            path = pathlib.Path(where).expanduser()
            if not path.is_file():
                raise InputError(f"{FLAG}={text}: there is no file {where}")
            module = import_file(path, "own_reward")
        else:
            module = importlib.import_module(where)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{FLAG}={text}: importing it failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{FLAG}={text}: {where} has no function {name}")
    source = pathlib.Path(module.__file__ or "")
    return function, hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source.is_file() else ""
