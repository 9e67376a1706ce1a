import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.models.items import ItemTower, centred
from crs_jax.models.query import STRENGTH, Query


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_is_the_sum_of_two_projections():
    rng = np.random.default_rng(0)
    query = Query(jnp.asarray(rng.normal(size=(7, 5)), jnp.float32), 1.0)
    query.named_kernel[...] = jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)
    text, named = unit(rng, 3, 7), unit(rng, 3, 7)
    want = text @ np.asarray(query.text_kernel[...]) + named @ np.asarray(query.named_kernel[...])
    np.testing.assert_allclose(query(text, named), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(query(np.zeros((2, 7)), np.zeros((2, 7))), np.zeros((2, 5)))


def test_first_logits_are_about_strength_times_the_cosine():
    rng = np.random.default_rng(1)
    content = unit(rng, 400, 384)
    tower = ItemTower(content, None, 192, rngs=nnx.Rngs(0))
    tower.residual[...] = jnp.zeros_like(tower.residual[...])
    query = Query(tower.projection[...], 0.02)
    text = centred(content)[:50]  # contexts that ask for the first fifty items themselves
    logits = np.asarray(query(text, np.zeros_like(text)) @ tower.table()[:400].T)
    want = STRENGTH * text @ centred(content).T
    # A random projection to D = 192 keeps a dot product of unit vectors to about 1/sqrt(D).
    assert np.abs(logits - want).std() < 1.5 * STRENGTH / np.sqrt(192)
    assert abs(np.diagonal(logits).mean() - STRENGTH) < 0.2
    assert (logits.argmax(1) == np.arange(50)).all()


def test_both_kernels_learn():
    rng = np.random.default_rng(2)
    query = Query(jnp.asarray(rng.normal(size=(7, 5)), jnp.float32), 1.0)
    text, named = unit(rng, 3, 7), unit(rng, 3, 7)
    grads = nnx.grad(lambda q: jnp.square(q(text, named)).sum())(query)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
