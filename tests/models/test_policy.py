"""Embeddings and the two masked softmaxes of the grammar, against plain loops and counts of what is legal."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import HUGE, make_layout, make_policy, next_token, random_params, split, tables

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
    main, extra = probabilities(policy.act_logits(policy.acting(hidden_SD, None), policy.item_table(), rows(ACTS)))
    np.testing.assert_allclose(main.sum(-1) + extra.sum(-1), 1.0, atol=1e-6)
    for s, act in enumerate(ACTS):
        expected = next_token(policy, hidden_SD[s], [LAYOUT.item_offset + n for n in act])
        legal = set(range(LAYOUT.num_items)) - set(act) if len(act) < LAYOUT.act_items else set()
        assert set(np.flatnonzero(main[s])) == legal  # no padded row, nothing twice, nothing beyond M
        for n in legal:
            assert main[s, n] == pytest.approx(expected[LAYOUT.item_offset + n], rel=1e-5)
        assert extra[s, 0] == pytest.approx(expected[LAYOUT.say], rel=1e-5)


def test_word_softmax_is_over_words_end_and_own_items(policy, hidden_SD):
    main, extra = probabilities(policy.word_logits(hidden_SD, policy.item_table(), rows(ACTS)))
    np.testing.assert_allclose(main.sum(-1) + extra.sum(-1), 1.0, atol=1e-6)
    for s, act in enumerate(ACTS):
        expected = next_token(policy, hidden_SD[s], [*(LAYOUT.item_offset + n for n in act), LAYOUT.say])
        legal = set(range(LAYOUT.num_words)) - {4} | {LAYOUT.end}
        assert set(np.flatnonzero(main[s])) == legal  # no other control, no unused word, no padded row
        for token in legal:
            assert main[s, token] == pytest.approx(expected[token], rel=1e-5)
        for m, n in itertools.zip_longest(range(LAYOUT.act_items), act):
            assert extra[s, m] == pytest.approx(0.0 if n is None else expected[LAYOUT.item_offset + n], rel=1e-5)


def test_ranking_logits_have_a_bias_and_no_padding(policy, hidden_SD):
    _, vectors, bias = tables(policy)
    logits = np.asarray(policy.item_logits(policy.acting(hidden_SD, None), policy.item_table()))
    np.testing.assert_allclose(
        logits[:, :5], float(policy.query.hidden_gain[...]) * (hidden_SD @ vectors[:5].T) + bias[:5], atol=1e-4
    )
    assert np.abs(vectors[5:]).max() > HUGE / 2
    np.testing.assert_array_equal(logits[:, 5:], np.float32(MASKED))


def test_embeddings_come_from_the_two_tables(policy):
    words, vectors, _ = tables(policy)
    tokens = np.arange(LAYOUT.item_offset + LAYOUT.num_items).reshape(2, -1)
    expected = np.concatenate([words[: LAYOUT.item_offset], vectors[: LAYOUT.num_items]])[tokens]
    np.testing.assert_allclose(policy.embed(tokens, policy.item_table()), expected, rtol=1e-5, atol=1e-6)


def test_same_tables_serve_input_and_output(policy):
    """A gradient through the embedding and one through the logits reach the same row."""
    graph, params, frozen = split(policy)

    def through(params, path):
        model = nnx.merge(graph, params, frozen)
        items_ND = model.item_table()
        if path == "embed":
            return model.embed(jnp.array([3, LAYOUT.item_offset + 2]), items_ND).sum()
        logits = model.word_logits(jnp.ones(16), items_ND, jnp.array([2, -1, -1]))
        return logits.main[3] + logits.extra[0]

    for path in ("embed", "logits"):
        grads = jax.grad(through)(params, path)
        for name, row in (("words", 3), ("residual", 2)):
            table = grads["words"] if name == "words" else grads["items"]["residual"]
            np.testing.assert_array_equal(np.flatnonzero(np.abs(table).sum(-1)), [row])


def test_activations_type_reaches_logits_as_float32():
    policy = make_policy(0, LAYOUT, dtype="bfloat16")
    hidden = jnp.ones((1, 16), jnp.bfloat16)
    assert policy.item_table().dtype == policy.embed(jnp.array([1]), policy.item_table()).dtype == jnp.bfloat16
    for logits in (
        policy.act_logits(policy.acting(hidden, None), policy.item_table(), rows([()])),
        policy.word_logits(hidden, policy.item_table(), rows([(1,)])),
    ):
        assert {part.dtype for part in logits} == {jnp.dtype("float32")}
        assert np.isfinite(probabilities(logits)[0]).all()
