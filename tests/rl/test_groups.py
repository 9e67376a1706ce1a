"""Advantages from a context's own replies, against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_policy import make_layout, random_replies

from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.rl.groups import best_alone, group_advantages, standardised
from crs_jax.rl.ppo import leave_one_out
from crs_jax.rl.reward import Normaliser, score
from crs_jax.rl.scoring import token_masks
from crs_jax.training.advantages import token_rewards

LAYOUT = make_layout(words=11, items=5, act_items=3)
C, G, R = 3, 4, 9


def advantages_of(reward_BR, split, group, name):
    algorithm = ALGORITHMS[name]
    return group_advantages(reward_BR, split, group, algorithm.relative, algorithm.words)


@pytest.mark.parametrize("algorithm", [name for name, each in ALGORITHMS.items() if each.relative])
def test_advantages_equal_a_loop(algorithm):
    rng = np.random.default_rng(0)
    tokens, mask = random_replies(rng, LAYOUT, C * G, R)
    reward = rng.normal(size=(C * G, R)).astype(np.float32)  # padding bears rewards too, which must not count
    found = np.asarray(advantages_of(jnp.asarray(reward), token_masks(tokens, mask, LAYOUT), G, algorithm))
    whole, words, said = [], [], []
    for b in range(C * G):
        row, real = tokens[b].tolist(), int(mask[b].sum())
        at = row.index(LAYOUT.say) if LAYOUT.say in row[:real] else real - 1
        said.append(at)
        whole.append(sum(float(x) for x in reward[b, :real]))
        words.append(sum(float(x) for x in reward[b, at + 1 : real]))

    def relative(values, b):
        own = values[b // G * G : (b // G + 1) * G]
        if algorithm == "raft":
            return G * (b % G == int(np.argmax(own)))
        if algorithm == "rloo":
            return values[b] - (sum(own) - values[b]) / (G - 1)
        mean = sum(own) / G
        return (values[b] - mean) / ((sum((x - mean) ** 2 for x in own) / G) ** 0.5 + 1e-6)

    for b in range(C * G):
        real = int(mask[b].sum())
        for r in range(R):
            expected = 0.0 if r >= real else relative(whole if r <= said[b] or algorithm == "raft" else words, b)
            assert found[b, r] == pytest.approx(expected, abs=1e-4), (b, r)


def test_best_alone_takes_the_first_of_equals():
    found = best_alone(jnp.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(found, [[0, 4, 0, 0], [4, 0, 0, 0]])


def test_standardised_by_hand():
    found = standardised(jnp.array([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]]))
    np.testing.assert_allclose(found, [[-1, 1, -1, 1], [0, 0, 0, 0]], atol=1e-5)


@jax.jit
def of_equals(value_C):
    """Advantages in groups of equal rewards, for every size from 2 to 32."""
    groups = [jnp.repeat(value_C[:, None], size, 1) for size in range(2, 33)]
    return [(standardised(a), leave_one_out(a)) for a in groups]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=C, max_size=C))
@example([3.7, -0.1, 1e5])  # whose means over six are a unit in the last place off
def test_equal_rewards_have_no_advantage(values):
    for standard_CG, left_CG in of_equals(jnp.array(values, jnp.float32)):
        np.testing.assert_array_equal(standard_CG, 0.0)
        np.testing.assert_array_equal(left_CG, 0.0)


def spoken(words):
    """Replies with one item, `<|say|>`, the given numbers of words and their end."""
    tokens = np.full((len(words), 9), LAYOUT.pad, np.int32)
    for row, count in zip(tokens, words, strict=True):
        row[: count + 3] = [LAYOUT.item_offset, LAYOUT.say, *[1] * count, LAYOUT.end]
    return token_masks(tokens, tokens != LAYOUT.pad, LAYOUT)


CLIP = 3.7


@functools.partial(jax.jit, static_argnames="size")
def from_signals(say_BS, end_BS, weight_S, split, size):
    """Scores of the replies, and the advantages of each algorithm."""
    normaliser = Normaliser(jnp.full(4, 0.3), jnp.full(4, 0.7), jnp.float32(1.1))
    scores = score(say_BS[None], end_BS[None], {"relevance": end_BS[:, 1]}, normaliser, weight_S, CLIP, 0.0)
    reward_BR = token_rewards(scores, split, *[jnp.zeros(split.act_BR.shape)] * 2, 0.0, 0.0, 0.0, 1.0)
    return scores, [advantages_of(reward_BR, split, size, name) for name in ("grpo", "raft", "rloo")]


@pytest.mark.parametrize("size", [2, 3, 7, 32])
@pytest.mark.parametrize("kind", ["at the clip", "own reward"])
def test_equal_totals_of_unequal_parts_are_equal(size, kind):
    """From signals to advantages: a reply's total is what its act earns and the rest, a sum that rounds."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        say_BS, end_BS = rng.normal(size=(2, C * size, 4)).astype(np.float32)
        weights = [1.0, 0.5, 0.3, 0.0]
        if kind == "at the clip":
            end_BS[:, 0] = 1000 * rng.choice([-1, 1], C).repeat(size)
        else:  # one of a few values, the same for all of a context's replies
            end_BS[:, 3], end_BS[:, 0], say_BS[:, 3] = rng.choice([0, 1, 3], C).repeat(size), 0.1, np.nan
            weights = [0.7, 0.0, 0.0, 1.3]
        split = spoken(rng.integers(1, 7, C * size))
        scores, found = from_signals(say_BS, end_BS, jnp.array(weights), split, size)
        act_CG, total_CG = (np.asarray(a, np.float64).reshape(C, size) for a in scores[:2])
        assert (total_CG == total_CG[:, :1]).all()
        assert (np.ptp(act_CG, axis=1) > 0).any()
        act_BR, word_BR, (grpo_BR, raft_BR, rloo_BR) = *map(np.asarray, split[:2]), map(np.asarray, found)

        np.testing.assert_array_equal(grpo_BR[act_BR], 0.0)
        centred_CG = act_CG.mean(1, keepdims=True) - act_CG
        expected_B = (centred_CG / (centred_CG.std(1, keepdims=True) + 1e-6)).reshape(-1)
        np.testing.assert_allclose(grpo_BR, np.where(word_BR, expected_B[:, None], 0.0), atol=1e-3)
        first_B = np.arange(C * size) % size == 0
        np.testing.assert_array_equal(raft_BR, np.where(first_B[:, None], size * (act_BR | word_BR), 0.0))
        assert np.abs(rloo_BR[act_BR]).max() <= 8 * np.spacing(np.float32(2 * CLIP))


def test_what_terms_cancel_is_no_difference():
    """Two terms of more than 1000 cancel: what is left differs in their rounding alone."""
    size = 6
    split = spoken([3] * size)
    term_B = np.random.default_rng(0).uniform(1000, 2000, size).astype(np.float32)
    left_B = (term_B + np.float32(0.2)) - term_B
    assert 0 < np.ptp(left_B) < 1e-3
    reward_BR = jnp.where(split.last_BR, left_B[:, None], 0.0)
    assert np.abs(np.asarray(advantages_of(reward_BR, split, size, "grpo"))).max() > 0.5
    np.testing.assert_array_equal(group_advantages(reward_BR, split, size, standardised, term_B=term_B), 0.0)


@pytest.mark.parametrize("size", [2, 32])
def test_what_rounding_cannot_explain_is_a_difference(size):
    """One reward 40 units in the last place above the others, against float64."""
    score = np.full((1, size), 3.7, np.float32)
    score[0, -1] += 40 * np.spacing(score[0, -1])
    centred = score.astype(np.float64) - score.astype(np.float64).mean()
    np.testing.assert_allclose(standardised(jnp.asarray(score)), centred / (centred.std() + 1e-6), rtol=1e-3)
    assert int(best_alone(jnp.asarray(score)).argmax()) == size - 1
    near = np.full((1, size), 3.7, np.float32)
    near[0, -1] += 4 * np.spacing(near[0, -1])
    np.testing.assert_array_equal(jax.jit(standardised)(near), 0.0)
    assert int(best_alone(jnp.asarray(near)).argmax()) == 0
