"""What the device reaches at best, measured: a large matrix product and a large copy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from crs_jax.tools.benchmark.clock import measure
from crs_jax.tools.benchmark.timing import Patience


def peaks(dtype: str, small: bool) -> dict[str, Any]:
    """Operations a second of a square matrix product in `dtype` (float32 sums) and bytes a second of a copy.

    The copy reads and writes every number of an array, and both count. The array is far larger than any cache.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    side = 512 if small else 2048 if on_cpu else 8192
    patience = Patience(least=5, most=30, seconds=1.0)
    left, right = (jax.random.normal(jax.random.key(n), (side, side), dtype) for n in (0, 1))
    product, _ = measure(jax.jit(jnp.matmul), [left, right], patience)
    numbers = 2**24 if small else 2**26 if on_cpu else 2**29
    many = jax.random.normal(jax.random.key(2), (numbers,), jnp.float32)
    copied, _ = measure(jax.jit(lambda a: a + 1.0), [many], patience)
    return {
        "matmul_flops_per_second": 2 * side**3 / product["seconds"],
        "copy_bytes_per_second": 8 * numbers / copied["seconds"],
        "matmul_side": side,
        "copied_bytes": 4 * numbers,
        "dtype": dtype,
    }
