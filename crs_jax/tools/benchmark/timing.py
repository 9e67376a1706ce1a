"""Runs something again and again, and says how long it took."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often a program is timed: at least `least` times, then on until `seconds` or `most` is reached."""

    least: int = 3
    most: int = 20
    seconds: float = 3.0


def summary(times: list[float]) -> dict[str, Any]:
    """Median seconds of the timed runs, their quartiles, extremes and number."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "seconds": statistics.median(times), "lower_quartile": low, "upper_quartile": high, "fastest": min(times),
        "slowest": max(times), "runs": len(times),
    }  # fmt: skip


def repeat(run: Callable[[], Any], patience: Patience) -> dict[str, Any]:
    """Times of `run`, which returns when its work is done; two runs before them warm up, code and memory."""
    run()
    run()
    times: list[float] = []
    while len(times) < patience.least or (sum(times) < patience.seconds and len(times) < patience.most):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return summary(times)
