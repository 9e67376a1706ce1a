"""Advantages over several turns against a loop over the concatenated tokens; orders of those who still talk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crs_jax.rl import ppo
from crs_jax.rl.turns import gae_over_turns, permutation

NAN = float("nan")
LENGTHS_UB = np.array([[3, 1, 4, 2, 5], [2, 4, 0, 1, 5], [1, 5, 0, 0, 3]])  # an episode may end early
U, B, R = *LENGTHS_UB.shape, 5


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    mask = np.arange(R) < LENGTHS_UB[..., None]
    reward, value = rng.normal(size=(2, U, B, R)).astype(np.float32)
    reward[~mask] = value[~mask] = NAN  # what stands on padding must not leak
    return reward, value, mask


@pytest.mark.parametrize(("discount", "lam", "between"), [(1.0, 0.95, 1.0), (0.9, 0.6, 0.5), (0.97, 1.0, 0.0)])
def test_gae_equals_a_loop_over_the_concatenated_tokens(case, discount, lam, between):
    """Schulman et al. 2016, eq. 16, as the double sum it is, a discount for each step."""
    reward, value, mask = case
    found, target = gae_over_turns(*map(jnp.asarray, case), discount, lam, between)
    for b in range(B):
        at = [(u, b, r) for u in range(U) for r in range(LENGTHS_UB[u, b])]
        step = [discount * (between if n + 1 < len(at) and at[n + 1][0] > u else 1.0) for n, (u, _, _) in enumerate(at)]
        delta = [
            float(reward[at[n]]) + (step[n] * value[at[n + 1]] if n + 1 < len(at) else 0.0) - float(value[at[n]])
            for n in range(len(at))
        ]
        for n in range(len(at)):
            weights = [np.prod([step[j] * lam for j in range(n, k)]) for k in range(n, len(at))]
            expected = sum(w * delta[k] for w, k in zip(weights, range(n, len(at)), strict=True))
            assert float(found[at[n]]) == pytest.approx(expected, abs=1e-5)
            assert float(target[at[n]]) == pytest.approx(expected + value[at[n]], abs=1e-5)
    np.testing.assert_array_equal(np.asarray(found)[~mask], 0.0)
    np.testing.assert_array_equal(np.asarray(target)[~mask], 0.0)


def test_one_turn_is_gae_and_turns_apart_are_each_their_own(case):
    reward, value, mask = map(jnp.asarray, case)
    together = gae_over_turns(reward, value, mask, 0.9, 0.8, 0.0)
    for u in range(U):
        alone = ppo.gae(reward[u], value[u], mask[u], 0.9, 0.8)
        one = gae_over_turns(reward[u : u + 1], value[u : u + 1], mask[u : u + 1], 0.9, 0.8)
        for a, b, c in zip(alone, one, together, strict=True):
            np.testing.assert_allclose(a, b[0], atol=1e-6)
            np.testing.assert_allclose(a, c[u], atol=1e-6)


def test_integer_rewards_are_refused():
    zeros = jnp.zeros((1, 1, 2))
    with pytest.raises(TypeError, match="reward_UBR is int32"):
        gae_over_turns(jnp.ones((1, 1, 2), jnp.int32), zeros, zeros == 0, 1.0, 1.0)


def test_those_who_talk_are_shuffled_among_themselves():
    there = jnp.array([True, False, True, True, False, True, True])
    orders = np.array([permutation(key, there) for key in jax.random.split(jax.random.key(0), 400)])
    assert (orders[:, ~np.asarray(there)] == [1, 4]).all()
    assert (np.sort(orders, axis=1) == np.arange(7)).all()
    counts = np.array([np.bincount(orders[:, b], minlength=7) for b in np.flatnonzero(there)])
    assert counts[:, np.flatnonzero(there)].min() > 45  # 80 on average, standard deviation 8
