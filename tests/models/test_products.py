"""Products with a float32 result: values and gradients of plain ones, and no float32 product in a bfloat16 step."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import benchmark
from crs_jax.models.products import float32_product
from crs_jax.runtime.sharding import AXES
from crs_jax.tools.benchmark.ahead import lower

SPECS = {"bcD,ND->bcN": ((3, 5, 8), (7, 8)), "BHTK,BHSK->BHTS": ((2, 3, 4, 8), (2, 3, 5, 8)), "D,ND->N": ((8,), (7, 8))}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_einsum_in_float64(spec, dtype):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), dtype) for shape in SPECS[spec])
    a64, b64 = (np.asarray(x, np.float64) for x in (a, b))
    out, back = jax.vjp(lambda a, b: float32_product(spec, a, b), a, b)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, np.einsum(spec, a64, b64), rtol=1e-5, atol=1e-5)
    g = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
    g64 = np.asarray(g.astype(dtype), np.float64)
    left, right = spec.split("->")
    of_a, of_b = left.split(",")
    expected = np.einsum(f"{right},{of_b}->{of_a}", g64, b64), np.einsum(f"{right},{of_a}->{of_b}", g64, a64)
    for got, wanted in zip(back(g), expected, strict=True):
        assert got.dtype == jnp.dtype(dtype)
        one = 2.0**-8 if dtype == "bfloat16" else 1e-6
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=one, atol=one)


def test_a_bfloat16_iteration_has_no_large_float32_product():
    """Whole updates included; what is left in float32 is the query and the items' contents, small beside the rest."""
    config = benchmark.get_config("tiny")
    config.model.update({"dtype": "bfloat16", "width": 128, "heads": 8})
    config.tokenizer.vocab_size = 2042
    config.ppo.update({"contexts": 16, "group": 2, "all_acts": 4, "slate_batches": 1})
    mesh = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)
    text = lower(config, mesh, items=300)[0].as_text()
    shape = r"\(tensor<([\dx]+)x(\w+)>, tensor<([\dx]+)x(\w+)>\) -> tensor<([\dx]+)x\w+>"
    found = re.findall(rf"dot_general.*: {shape}", text)
    assert len(found) > 100
    wide = []
    for a, type_a, b, type_b, out in found:
        if "f32" in (type_a, type_b):
            sizes = [[int(n) for n in dims.split("x")] for dims in (a, b, out)]
            assert not any(2048 in size for size in sizes), (a, b, out)  # words
            multiplied = math.sqrt(math.prod(math.prod(size) for size in sizes))  # m k n of a matrix product
            wide += [(a, b, out)] if multiplied > 384 * 426 * 128 else []
    assert not wide
