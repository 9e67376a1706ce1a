"""Trunks of GPT-2 and of a toy with rotary positions and fewer key/value heads: padding, caches, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crs_jax.models import transformer
from crs_jax.models.gpt2 import GPT2Config


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("float32"):
        yield


RAGGED = [9, 4, 2, 6]
REPLIES = 5


@pytest.fixture(scope="module", params=["gpt2", "toy"])
def decoder(request):
    return GPT2Config if request.param == "gpt2" else request.getfixturevalue("toy_module").ToyConfig


def trunk_graph(decoder, **config):
    """Graph and shapes of a small trunk."""
    given = decoder(**{"layers": 3, "width": 24, "heads": 4, "positions": 32} | config)
    return nnx.split(nnx.eval_shape(lambda: given.trunk(nnx.Rngs(0))))


@pytest.fixture(scope="module")
def trunk(decoder):
    graph, shapes = trunk_graph(decoder)
    rng = np.random.default_rng(3)
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), shapes))


@jax.jit
def full_pass(trunk, x_BTD, position_BT, mask_BTS):
    return trunk(x_BTD, position_BT, mask_BTS)


def plain(trunk, rows):
    """Each row on its own, from position 0; padded on the right, where nobody looks, to one length."""
    T = max(RAGGED) + REPLIES
    x_BTD = np.stack([np.pad(row, ((0, T - len(row)), (0, 0))) for row in rows])
    hidden = full_pass(trunk, x_BTD, np.arange(T)[None], np.tril(np.ones((len(rows), T, T), bool)))
    return [np.asarray(h)[: len(row)] for h, row in zip(hidden, rows, strict=True)]


def left_padded(rng, width):
    x_CPD = rng.normal(size=(len(RAGGED), max(RAGGED), width)).astype(np.float32)
    mask_CP = np.arange(max(RAGGED)) >= max(RAGGED) - np.array(RAGGED)[:, None]
    position_CP = np.where(mask_CP, np.cumsum(mask_CP, -1) - 1, 0)
    sees_CPP = np.tril(np.ones((max(RAGGED),) * 2, bool)) & mask_CP[:, None]
    return x_CPD, mask_CP, position_CP, sees_CPP


def test_left_padding_changes_nothing(trunk):
    x_CPD, mask_CP, position_CP, sees_CPP = left_padded(np.random.default_rng(4), 24)
    hidden = np.asarray(full_pass(trunk, x_CPD, position_CP, sees_CPP))
    assert np.isfinite(hidden).all()  # rows that see nothing too
    alone = plain(trunk, [x_PD[mask] for x_PD, mask in zip(x_CPD, mask_CP, strict=True)])
    for c, mask in enumerate(mask_CP):
        np.testing.assert_allclose(hidden[c, mask], alone[c], atol=2e-5)


@pytest.mark.parametrize("group", [1, 3])
def test_prefill_and_decode_equal_the_full_pass(trunk, group):
    rng = np.random.default_rng(5)
    x_CPD, mask_CP, position_CP, sees_CPP = left_padded(rng, 24)
    B = len(RAGGED) * group
    reply_BRD = rng.normal(size=(B, REPLIES, 24)).astype(np.float32)
    before, prompt = prefill(trunk, x_CPD, position_CP, sees_CPP)
    assert prompt.k_LBJSK.shape == (3, len(RAGGED), trunk.config.kv_heads, max(RAGGED), 6)
    cache = trunk.empty_cache(B, REPLIES + 2)  # slots to spare: what is not filled must not be seen
    cache = jax.tree.map(lambda a: a + 7.0, cache)
    length_B = np.repeat(mask_CP.sum(-1), group)
    steps = []
    for r in range(REPLIES):
        hidden_BD, cache = decode(trunk, reply_BRD[:, r], length_B + r, prompt, mask_CP, cache, r)
        steps.append(hidden_BD)
    got_BRD = np.stack(steps, 1)
    own = [x_CPD[b // group, mask_CP[b // group]] for b in range(B)]
    full = plain(trunk, [np.concatenate(pair) for pair in zip(own, reply_BRD, strict=True)])
    for b in range(B):
        np.testing.assert_allclose(before[b // group, -1], full[b][len(own[b]) - 1], atol=2e-5)
        np.testing.assert_allclose(got_BRD[b], full[b][len(own[b]) :], atol=2e-5)


@jax.jit
def prefill(trunk, *args):
    return trunk.prefill(*args)


@jax.jit
def decode(trunk, *args):
    return trunk.decode(*args)


def test_remat_changes_neither_value_nor_gradient(trunk):
    x_BTD = np.random.default_rng(6).normal(size=(2, 7, 24)).astype(np.float32)
    mask = np.broadcast_to(np.tril(np.ones((7, 7), bool)), (2, 7, 7))
    state = nnx.state(trunk)
    results = []
    for remat in (False, True):
        graph = trunk_graph(type(trunk.config), remat=remat)[0]

        def loss(state, graph=graph):
            return jnp.sin(nnx.merge(graph, state)(x_BTD, jnp.arange(7)[None], mask)).sum()

        results.append(jax.jit(jax.value_and_grad(loss))(state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.full((200, 500), 3.0)
    got = np.asarray(transformer.dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(got.round(4))) == {0.0, np.float32(3 / 0.7).round(4)}
    assert abs((got == 0).mean() - 0.3) < 5 * (0.3 * 0.7 / got.size) ** 0.5
    assert transformer.dropout(x, 0.3, None) is x


def test_keys_draw_different_dropout(trunk):
    dropped = nnx.merge(trunk_graph(type(trunk.config), dropout=0.5)[0], nnx.state(trunk))
    x, mask = np.ones((1, 4, 24)), np.tril(np.ones((1, 4, 4), bool))
    run = jax.jit(lambda key: dropped(x, jnp.arange(4)[None], mask, key))
    one, same, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_the_toy_reads_distances_alone(toy_module):
    """What the decode test would miss: that positions count at all, and only by their differences."""
    graph, shapes = trunk_graph(toy_module.ToyConfig)
    rng = np.random.default_rng(3)
    trunk = nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), shapes))
    x_BTD, position_BT = rng.normal(size=(1, 7, 24)).astype(np.float32), np.arange(7)[None]
    mask = np.tril(np.ones((1, 7, 7), bool))
    hidden = full_pass(trunk, x_BTD, position_BT, mask)
    np.testing.assert_allclose(full_pass(trunk, x_BTD, position_BT + 9, mask), hidden, atol=2e-4)
    assert np.abs(full_pass(trunk, x_BTD, position_BT * 2, mask) - hidden).max() > 1e-2
