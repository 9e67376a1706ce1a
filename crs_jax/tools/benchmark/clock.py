"""Compiles a program, times it, and says what memory it needs."""

from __future__ import annotations

import time
from typing import Any

import jax

from crs_jax.tools.benchmark.timing import Patience, repeat


def memory(compiled: Any) -> dict[str, int]:
    """Bytes that the compiled program needs at once, by its own plan: arguments, results and scratch."""
    plan = compiled.memory_analysis()
    if plan is None:
        return {}
    arguments, outputs, aliased = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.alias_size_in_bytes
    scratch = plan.temp_size_in_bytes
    return {
        "argument_bytes": arguments, "scratch_bytes": scratch, "peak_bytes": arguments + outputs - aliased + scratch,
    }  # fmt: skip


def device_peak() -> int | None:
    """Most bytes that the device's allocator has held at once since the process began; None where it does not say."""
    stats = jax.devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def measure(
    function: Any, arguments: list[Any], patience: Patience, *, carries: bool = False
) -> tuple[dict[str, Any], Any]:
    """Compiles and times a jitted function.

    Args:
      function: from `jax.jit`.
      arguments: on the device.
      patience: how often.
      carries: the first argument is donated, and the first result takes its place.

    Returns:
      times (`timing.summary`) with compile time and memory, and the last result.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    found = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - start}
    last: list[Any] = [None]

    def run() -> None:
        last[0] = None  # what the run before gave makes room
        result = jax.block_until_ready(compiled(*arguments))
        if carries:
            arguments[0] = result[0]
        last[0] = result

    found |= repeat(run, patience) | memory(compiled)
    return found, last[0]
