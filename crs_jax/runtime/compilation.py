"""Compiled programs: one of each step in a run, and kept from run to run."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crs_jax.runtime.sharding import on_mesh

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 4 * 2**30
"""Of kept programs; what was not used for longest goes first."""


class CompiledOnce:
    """A jitted step, traced with the mesh in sight, that is compiled once.

    Given arrays of another shape, type or layout in the middle of a run, a jitted function is compiled again, which can
    take minutes at every change and is seen by nobody. Here it is a `RuntimeError` that names what changed.

    Args:
      name: of the step, for the error.
      function: what is jitted.
      mesh: for `on_mesh`.
      donate: number of the argument whose memory the results take over, if any.
    """

    def __init__(self, name: str, function: Callable, mesh: Mesh, donate: int | None = None) -> None:
        self.name = name
        self._jitted = jax.jit(on_mesh(function, mesh), donate_argnums=() if donate is None else donate)
        self._first: tuple | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Runs the step."""
        found = signature(arguments)
        if self._first is None:
            self._first = found
        elif changed := difference(self._first, found):
            raise RuntimeError(f"{self.name}: {changed}; it would be compiled a second time")
        return self._jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """That of the jitted function."""
        return self._jitted.lower(*arguments)


def signature(arguments: Any) -> tuple[Any, list[tuple]]:
    """Structure of the arguments, and type, shape and layout of each array."""
    leaves, structure = jax.tree.flatten(arguments)
    return structure, [(*_type(a), getattr(a, "sharding", None)) for a in leaves]


def _type(leaf: Any) -> tuple[str, tuple[int, ...]]:
    weak = " (weak)" if getattr(leaf, "weak_type", False) else ""
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}{weak}", np.shape(leaf)


def difference(first: tuple, now: tuple) -> str:
    """What a second program would be needed for, by the number of the array among all of the arguments; else ""."""
    if len(first[1]) != len(now[1]):
        return f"it was called with {len(first[1])} arrays and now with {len(now[1])}"
    for number, (before, after) in enumerate(zip(first[1], now[1], strict=True)):
        if before[:2] != after[:2] or not _alike(before[2], after[2], len(before[1])):
            return f"array {number} of its arguments was {_shown(before)} and is now {_shown(after)}"
    return "" if first[0] == now[0] else "its arguments have another structure than before"


def _alike(before: Any, after: Any, ndim: int) -> bool:
    """Whether two shardings lay an array out alike; None is that of a host array, which lies whole on each device."""
    if before is None or after is None:
        known = after if before is None else before
        return known is None or known.is_fully_replicated
    return before == after or before.is_equivalent_to(after, ndim)


def _shown(array: tuple) -> str:
    dtype, shape, sharding = array
    spec = getattr(sharding, "spec", None)
    return f"{dtype}{list(shape)}" + (f" laid out as {spec}" if spec is not None else "")


def keep_programs() -> pathlib.Path | None:
    """Has compiled programs kept between runs, where neither the environment nor the caller has said where.

    They lie in `$XDG_CACHE_HOME/crs_jax`, else `~/.cache/crs_jax`, a folder for each kind of processor: a program for
    one may not run on another. `JAX_COMPILATION_CACHE_DIR=FOLDER` keeps them elsewhere, an empty one nowhere. Several
    processes need a folder that all see, which only the user can name; without one nothing is kept. Returns the folder,
    None where this function changes nothing.
    """
    if jax.process_count() > 1 or FOLDER in os.environ or jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = base / "crs_jax" / f"programs-{processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    return folder


def processor() -> str:
    """Short fingerprint of what instructions this machine's processor has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *kinds]).encode()).hexdigest()[:12]
