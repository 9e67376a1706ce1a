"""Embeddings and the two masked softmaxes of the grammar, against plain loops and counts of what is legal."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import HUGE, item_scores, make_layout, make_policy, next_token, random_params, split, tables

from crs_jax.models.likelihood import log_normaliser
from crs_jax.models.policy import MASKED, Logits

LAYOUT = make_layout(words=11, items=5, act_items=3, unused=(4,))
ACTS = [(), (2,), (4, 0), (1, 3, 2)]


@pytest.fixture(scope="module")
def policy():
    """Padding and the control tokens that nobody samples have huge embeddings."""
    graph, params, frozen = split(make_policy(0, LAYOUT))
    return nnx.merge(graph, random_params(params, LAYOUT, 3, huge_controls=True), frozen)


@pytest.fixture(scope="module")
def hidden_SD():
    return np.random.default_rng(1).normal(size=(len(ACTS), 16)).astype(np.float32)


def rows(acts):
    return np.array([[*act, *[-1] * (LAYOUT.act_items - len(act))] for act in acts])


def probabilities(logits: Logits):
    total = log_normaliser(logits)[..., None]
    return np.exp(np.asarray(logits.main - total)), np.exp(np.asarray(logits.extra - total))


def test_act_softmax_is_over_unused_items_and_say(policy, hidden_SD):
    main, extra = probabilities(policy.act_logits(policy.acting(hidden_SD, None), policy.tables(), rows(ACTS)))
    np.testing.assert_allclose(main.sum(-1) + extra.sum(-1), 1.0, atol=1e-6)
    for s, act in enumerate(ACTS):
        expected = next_token(policy, hidden_SD[s], [LAYOUT.item_offset + n for n in act])
        legal = set(range(LAYOUT.num_items)) - set(act) if len(act) < LAYOUT.act_items else set()
        assert set(np.flatnonzero(main[s])) == legal  # no padded row, nothing twice, nothing beyond M
        for n in legal:
            assert main[s, n] == pytest.approx(expected[LAYOUT.item_offset + n], rel=1e-5)
        assert extra[s, 0] == pytest.approx(expected[LAYOUT.say], rel=1e-5)


def test_word_softmax_is_over_words_end_and_own_items(policy, hidden_SD):
    main, extra = probabilities(policy.word_logits(hidden_SD, policy.tables(), rows(ACTS)))
    np.testing.assert_allclose(main.sum(-1) + extra.sum(-1), 1.0, atol=1e-6)
    for s, act in enumerate(ACTS):
        expected = next_token(policy, hidden_SD[s], [*(LAYOUT.item_offset + n for n in act), LAYOUT.say])
        legal = set(range(LAYOUT.num_words)) - {4}
        assert set(np.flatnonzero(main[s])) == legal  # no other control, no unused word, no padded row
        for token in legal:
            assert main[s, token] == pytest.approx(expected[token], rel=1e-5)
        assert extra[s, -1] == pytest.approx(expected[LAYOUT.end], rel=1e-5)
        for m, n in itertools.zip_longest(range(LAYOUT.act_items), act):
            assert extra[s, m] == pytest.approx(0.0 if n is None else expected[LAYOUT.item_offset + n], rel=1e-5)


def test_ranking_logits_have_a_bias_and_no_padding(policy, hidden_SD):
    _, vectors, bias = tables(policy)
    logits = np.asarray(policy.item_logits(policy.acting(hidden_SD, None), policy.tables()))
    expected = np.stack([item_scores(policy, hidden_D) + bias for hidden_D in hidden_SD])
    np.testing.assert_allclose(logits[:, :5], expected[:, :5], atol=1e-4)
    assert np.abs(vectors[5:]).max() > HUGE / 2
    np.testing.assert_array_equal(logits[:, 5:], np.float32(MASKED))


def test_embeddings_come_from_the_two_tables(policy):
    words, vectors, _ = tables(policy)
    tokens = np.arange(LAYOUT.item_offset + LAYOUT.num_items).reshape(2, -1)
    expected = np.concatenate([words, vectors[: LAYOUT.num_items]])[tokens]
    np.testing.assert_allclose(policy.embed(tokens, policy.tables()), expected, rtol=1e-5, atol=1e-6)


def test_same_tables_serve_input_and_output(policy):
    """A gradient through the embedding reaches a word's and an item's own row; through the softmax all legal rows."""
    graph, params, frozen = split(policy)
    hidden = jnp.linspace(-1, 1, 16)

    def through(params, path):
        model = nnx.merge(graph, params, frozen)
        tables = model.tables()
        if path == "embed":
            return model.embed(jnp.array([3, LAYOUT.item_offset + 2]), tables).sum(), 0.0
        logits = model.word_logits(hidden, tables, jnp.array([2, 0, -1]))
        return logits.main[3] + logits.extra[0], logits.main

    (_, _), grads = jax.value_and_grad(through, has_aux=True)(params, "embed")
    for table, row in ((grads["words"], 3), (grads["items"]["residual"], 2)):
        np.testing.assert_array_equal(np.flatnonzero(np.abs(table).sum(-1) > 1e-6), [row])
        np.testing.assert_allclose(table[row], 1.0, rtol=1e-5)
    (_, logp), grads = jax.value_and_grad(through, has_aux=True)(params, "logits")
    expected = -np.exp(np.asarray(logp))[:, None] * np.asarray(hidden)  # of a softmax: (1 - p) h, and -p h elsewhere
    expected[3] += np.asarray(hidden)
    np.testing.assert_allclose(grads["words"], expected, atol=1e-5)
    assert set(np.flatnonzero(np.abs(grads["items"]["residual"]).sum(-1) > 1e-6)) == {0, 2}


def test_activations_type_reaches_logits_as_float32():
    policy = make_policy(0, LAYOUT, dtype="bfloat16")
    hidden = jnp.ones((1, 16), jnp.bfloat16)
    tables = policy.tables()
    assert tables.words_VD.dtype == tables.items_ND.dtype == tables.content_NE.dtype == jnp.bfloat16
    assert policy.embed(jnp.array([1]), tables).dtype == tables.mean_D.dtype == jnp.float32
    for logits in (
        policy.act_logits(policy.acting(hidden, None), policy.tables(), rows([()])),
        policy.word_logits(hidden, policy.tables(), rows([(1,)])),
    ):
        assert {part.dtype for part in logits} == {jnp.dtype("float32")}
        assert np.isfinite(probabilities(logits)[0]).all()
