"""Sums over acts: against samples of the same surrogate, by hand, and as a control variate that changes no mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from crs_jax.rl import ppo
from crs_jax.rl.all_acts import Acts, known_advantages, likeliest, of_sampled, surrogate


def test_likeliest_are_the_top_items_and_say():
    logp = np.log(np.array([[0.1, 0.4, 0.2, 0.25, 0.05], [0.3, 0.05, 0.3, 0.3, 0.05]]))
    rows, chosen = likeliest(jnp.asarray(logp, jnp.float32), 2)
    assert rows[0].tolist() == [1, 3, 4]
    assert set(rows[1, :2].tolist()) < {0, 2, 3}
    np.testing.assert_allclose(np.exp(chosen[0]), [0.4, 0.25, 0.05], rtol=1e-6)
    assert rows[1, 2] == 4


def test_known_advantages_by_hand():
    """Scores 1, 0, 2 less 0.5 x log-ratio; the mean weighs by the policy, renormalised over the acts that are there."""
    p, reference = np.array([0.5, 0.2, 0.1]), np.array([0.25, 0.2, 0.2])
    got = known_advantages(jnp.array([[1.0, 0.0, 2.0]]), jnp.log(p)[None], jnp.log(reference)[None], jnp.float32(0.5))
    values = [1.0 - 0.5 * np.log(2), 0.0, 2.0 + 0.5 * np.log(2)]
    mean = np.dot(p, values) / 0.8
    np.testing.assert_allclose(got[0], np.array(values) - mean, rtol=1e-5)


def test_surrogate_is_the_mean_of_the_sampled_one():
    """Loss and gradient of the sum equal the mean over many sampled acts, clip and all."""
    rng = np.random.default_rng(0)
    old, new = (scipy.special.log_softmax(rng.normal(0, s, (1, 7)), 1).astype(np.float32) for s in (1.0, 1.3))
    acts = Acts(jnp.arange(7)[None], jnp.asarray(old), jnp.asarray(rng.normal(size=(1, 7)), jnp.float32))
    drawn = rng.choice(7, 400_000, p=np.exp(old[0]) / np.exp(old[0]).sum())

    def summed(logits):
        return surrogate(jax.nn.log_softmax(logits), acts, 0.2).sum()

    def sampled(logits):
        logp = jax.nn.log_softmax(logits)[0, drawn]
        return ppo.policy_loss(logp, acts.logp_CA[0, drawn], acts.advantage_CA[0, drawn], 0.2)[0].mean()

    (a, ga), (b, gb) = (jax.value_and_grad(f)(jnp.asarray(new)) for f in (summed, sampled))
    assert float(a) == pytest.approx(float(b), abs=0.005)
    np.testing.assert_allclose(ga, gb, atol=0.005)
    assert np.abs(ga).max() > 0.05


def test_of_sampled_finds_acts_and_leaves_others():
    acts = Acts(jnp.array([[4, 1, 9], [2, 0, 9]]), jnp.zeros((2, 3)), jnp.array([[0.5, -1.0, 0.25], [3.0, 2.0, 1.0]]))
    got = of_sampled(acts, jnp.array([[1, 4, 7], [9, 9, 4]]))
    np.testing.assert_array_equal(got, [[-1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
