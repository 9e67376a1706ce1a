"""Aligns conversational recommenders with implicit user feedback; see README.md.

What a program needs of it is here: `load` a finished run, or `train` one; a `Run` recommends, replies and scores. It is
imported when it is first used, so that `import crs_jax` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crs_jax.api import Recommendation, Reply, Run, Score, load, train
    from crs_jax.errors import InputError

__all__ = ["InputError", "Recommendation", "Reply", "Run", "Score", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'crs_jax' has no attribute {name!r}")
    return getattr(import_module("crs_jax.errors" if name == "InputError" else "crs_jax.api"), name)
