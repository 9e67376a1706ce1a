"""The item tower: vectors, biases and padding."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crs_jax.models.items import Frozen, ItemTower, centred, padded

N, E, D = 5, 4, 6
FACETS_NF = np.array([[1, 0], [0, 1], [0, 0], [0.6, 0.8], [1, 0]], np.float32)


@pytest.fixture(scope="module")
def tower():
    content_NE = np.random.default_rng(0).normal(3.0, 1.0, (N, E))
    return content_NE, ItemTower(content_NE, FACETS_NF, np.log1p([0, 7, 3, 1, 40]), D, rngs=nnx.Rngs(0), pad_to=8)


def test_content_is_what_tells_items_apart(tower):
    """Centred unit embeddings, attributes, centred log popularity; a residual that knows nothing yet; rows padded."""
    content_NE, tower = tower
    mean = [sum(column) / N for column in content_NE.T]
    popular = np.log([1.0, 8.0, 4.0, 2.0, 41.0])
    for n, row in enumerate(content_NE):
        off = [x - m for x, m in zip(row, mean, strict=True)]
        length = sum(x * x for x in off) ** 0.5
        known = [*(x / length for x in off), *FACETS_NF[n], popular[n] - sum(popular) / N]
        np.testing.assert_allclose(tower.content[...][n], known, atol=1e-6)
    assert tower.content[...].shape == (8, E + 3)
    assert tower.residual[...].shape == (8, D)
    assert tower.projection[...].shape == (E + 3, D)
    assert tower.projection[...].dtype == tower.content[...].dtype == jnp.float32
    assert not tower.residual[...].any()
    assert not tower.content[...][N:].any()


def test_centred_rows_are_unit_and_a_row_at_the_mean_is_no_nan():
    rows = centred(np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 4.0], [2.0, 2.0]]))
    np.testing.assert_allclose(np.linalg.norm(rows[:3], axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(rows[3], 0.0)
    assert rows.dtype == np.float32


def test_content_is_frozen_and_the_rest_is_trained(tower):
    _, params, frozen = nnx.split(tower[1], nnx.Param, Frozen)
    assert set(nnx.to_pure_dict(params)) == {"projection", "residual", "bias"}
    assert set(nnx.to_pure_dict(frozen)) == {"content"}


@pytest.mark.parametrize(("rows", "multiple", "expected"), [(1, 128, 128), (128, 128, 128), (129, 128, 256), (5, 8, 8)])
def test_padded(rows, multiple, expected):
    assert padded(rows, multiple) == expected


def test_a_task_compares_items_by_what_tells_them_apart(tmp_path):
    """Relevance's vectors are unit, and their common part is gone: no item is near all others."""
    import sys

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "training"))
    from tiny_task import make_task, tiny_config

    task = make_task(tmp_path, tiny_config(tmp_path))
    plain, contrast = task.content_NE, task.contrast_NE
    np.testing.assert_allclose(np.linalg.norm(contrast, axis=1), 1.0, rtol=1e-5)
    less = plain - plain.mean(0)
    np.testing.assert_allclose(contrast, less / np.linalg.norm(less, axis=1, keepdims=True), atol=1e-5)
    assert task.contrast_NE is contrast
