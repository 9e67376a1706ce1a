"""Value warm-up: the policy's bits stay, the value function learns as if nothing else were there, then all learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_bandit import Bandit

from crs_jax.inputs.task import copy_tree
from crs_jax.training.optimizer import Rates, make_optimizer, schedule
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.state import fresh_state

WARM = 2


@pytest.fixture(scope="module")
def bandit():
    # The trunk is shared, so that the value loss pulls at the policy too; weight decay would move it without one.
    ppo = {"value_warmup": WARM, "act_kl_target": 0.5, "kl_horizon": 1000}
    return Bandit("shared", gae_lambda=1.0, group_baseline=False, ppo={**ppo, "contexts": 16, "minibatches": 2})


def optimizer():
    return make_optimizer(Rates(1e-2, 0.1), 0.05, 100, 1.0)


def states(bandit, iteration, optimizer, count):
    coefficients = first_extra(0.7, 0.7, 0.4)
    state = fresh_state(copy_tree(bandit.params), optimizer, bandit.mesh, coefficients)
    found = []
    for _ in range(count):
        state, metrics = iteration(state, bandit.frozen_models, bandit.normaliser, bandit.contexts, jax.random.key(0))
        found.append((copy_tree(state.params), dict(state.extra), metrics))
        state = state._replace(params=copy_tree(state.params), extra=copy_tree(state.extra))
    return found


def same(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def test_the_value_function_learns_alone_then_the_policy_too(bandit):
    iteration = make_iteration(bandit.graphs, optimizer(), bandit.config, bandit.mesh)
    found = states(bandit, iteration, optimizer(), WARM + 1)
    start = bandit.params
    for params, extra, metrics in found[:WARM]:
        assert same(params["policy"], start["policy"])
        assert float(extra["act_kl"]) == np.float32(0.7)  # a KL of 0 is no reason to lower it
        assert abs(float(metrics["kl"])) < 1e-5
    after, extra, _ = found[WARM]
    assert not same(after["policy"], start["policy"])
    assert float(extra["act_kl"]) < 0.7

    # The same from an optimizer that knows of the value head alone, its gradient clipped by its own norm.
    whole = bandit.config.copy_and_resolve_references()
    with whole.unlocked():
        whole.ppo.value_warmup = 0
    alone = optax.multi_transform(
        {"policy": optax.set_to_zero(), "head": optimizer()},
        lambda params: {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()},
    )
    plain = make_iteration(bandit.graphs, alone, whole, bandit.mesh)
    for (params, _, _), (expected, _, _) in zip(found[:WARM], states(bandit, plain, alone, WARM), strict=True):
        assert not same(params["head"], start["head"])
        for a, b in zip(jax.tree.leaves(params["head"]), jax.tree.leaves(expected["head"]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_rate_ends_where_it_is_told():
    rate = schedule(2.0, 0.1, 100, 1.0)  # from .2 to 2 over 10 steps, then as it is
    assert [float(rate(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx([0.2, 1.1, 2.0, 2.0, 2.0])
    rate = schedule(2.0, 0.1, 100, 0.0)  # down to 0 over the other 90
    assert [float(rate(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx([0.2, 1.1, 2.0, 1.0, 0.0], abs=1e-6)
    assert float(schedule(2.0, 0.1, 100)(100)) == pytest.approx(0.2)
    # With one and the same gradient Adam moves a parameter by the rate: that of step 100.
    tree = {"words": jnp.zeros(1)}
    moved = {}
    for end in (0.0, 1.0):
        adam = make_optimizer(Rates(2.0), 0.1, 100, 1.0, end)
        state, params = adam.init(tree), tree
        for _ in range(101):
            updates, state = adam.update({"words": jnp.ones(1)}, state, params)
        moved[end] = float(updates["words"][0])
    assert moved[0.0] == pytest.approx(0.0, abs=1e-5)
    assert moved[1.0] == pytest.approx(-2.0, rel=1e-3)
