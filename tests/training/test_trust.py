"""The trust region: of a KL in closed form, of one that is never small enough, and in the whole iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bandit import Bandit

from crs_jax.inputs.task import copy_tree
from crs_jax.training.optimizer import Rates, make_optimizer
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.state import fresh_state
from crs_jax.training.trust import Moved, shortened

OLD = {"a": jnp.zeros(3), "b": jnp.ones((2, 2))}


def to(far):
    return jax.tree.map(lambda a: a + far, OLD)


def quadratic(params):
    """KLs of .5 and 2 times the square of the way."""
    way = params["a"][0]
    return Moved(0.5 * way**2, 2.0 * way**2)


@pytest.mark.parametrize("far", [0.01, 0.5, 40.0])
def test_both_kls_are_held_to_the_bound(far):
    params, moved, share = jax.jit(lambda new: shortened(quadratic, OLD, new, 0.02))(to(far))
    assert float(moved.word) <= 0.02
    if far == 0.01:
        assert float(share) == 1.0
    else:
        assert float(moved.word) > 0.01  # no shorter than it has to be
    for key in OLD:
        np.testing.assert_allclose(params[key] - OLD[key], float(share) * far, rtol=1e-5)
    assert float(moved.act) == pytest.approx(0.5 * (float(share) * far) ** 2, rel=1e-4)


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), 7.0])
def test_what_cannot_be_held_is_not_made(kl):
    def measure(params):
        return Moved(jnp.float32(kl), jnp.float32(0))

    params, moved, share = jax.jit(lambda new: shortened(measure, OLD, new, 1.0))(to(1.0))
    jax.tree.map(np.testing.assert_array_equal, params, OLD)
    assert (float(share), float(moved.act), float(moved.word)) == (0.0, 0.0, 0.0)


def test_an_iteration_stays_within_its_bound():
    """At a rate a hundred times too high, against the exact KL over all replies of the bandit."""
    bandit = Bandit("detached", gae_lambda=1.0)
    optimizer = make_optimizer(Rates(0.3), 0.0, 10, 1.0)
    far = {}
    for bound in (1e9, 0.05):
        with bandit.config.unlocked():
            bandit.config.ppo.step_kl = bound
        iteration = make_iteration(bandit.graphs, optimizer, bandit.config, bandit.mesh)
        extra = first_extra(0.1, 0.1, 0.1)
        state = fresh_state(copy_tree(bandit.params), optimizer, bandit.mesh, extra)
        state, metrics = iteration(state, bandit.frozen_models, bandit.normaliser, bandit.contexts, jax.random.key(0))
        before, after = bandit.distribution(bandit.reference), bandit.distribution(state.params["policy"])
        far[bound] = (before * np.log(before / np.maximum(after, 1e-30))).sum(1).mean(), metrics
    free, held = far[1e9], far[0.05]
    assert free[0] > 0.5
    assert float(free[1]["step_kl/share"]) == 1.0
    assert 0 < float(held[1]["step_kl/share"]) < 1
    assert max(float(held[1][f"step_kl/{part}"]) for part in ("act", "word")) <= 0.05
    assert float(held[1]["step_kl/act"] + held[1]["step_kl/word"]) == pytest.approx(held[0], rel=0.2)
