"""Aligns conversational recommenders with implicit user feedback; see README.md.

What a program needs of it is here: `load` a finished run, or `train` one; a `Run` recommends, replies and scores. It is
imported when it is first used, so that `import crs_jax` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crs_jax.api import Run, load, train
    from crs_jax.errors import InputError
    from crs_jax.proposals import Recommendation, Reply, Score

_HOME = {
    **dict.fromkeys(("Run", "load", "train"), "crs_jax.api"),
    **dict.fromkeys(("Recommendation", "Reply", "Score"), "crs_jax.proposals"),
    "InputError": "crs_jax.errors",
}
__all__ = ["InputError", "Recommendation", "Reply", "Run", "Score", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crs_jax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
