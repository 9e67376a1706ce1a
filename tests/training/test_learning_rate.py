"""PPO's learning rate: what is logged is what was used, and updates that are left out do not hold the schedule up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crs_jax.inputs.task import copy_tree
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training import ppo_stage
from crs_jax.training.optimizer import Rates, make_optimizer, schedule
from crs_jax.training.ppo_stage import run_ppo
from crs_jax.training.state import apply_gradients

RATE, ITERATIONS, UPDATES = 3e-3, 5, 4  # updates of an iteration


def signs(tree):
    """A gradient of -1 and 1, by which Adam moves every parameter by exactly the rate."""
    return jax.tree.map(lambda a: np.random.default_rng(a.size).choice([-1.0, 1.0], a.shape).astype(a.dtype), tree)


@pytest.mark.parametrize("step_kl", [1e9, 1e-4])
def test_what_is_logged_is_what_was_used(world, tmp_path, monkeypatch, step_kl):
    def constant(*arguments, **named):
        return optax.chain(optax.stateless(lambda grads, _: signs(grads)), make_optimizer(*arguments, **named))

    monkeypatch.setattr(ppo_stage, "make_optimizer", constant)
    settings = {
        "learning_rate": RATE,
        "step_kl": step_kl,
        "query_rate": 1.0,
        "slate_rate": 1.0,
        "iterations": ITERATIONS,
        "validation_contexts": 0,
        "warmup": 0.3,
    }
    task = world.at(tmp_path, **{f"ppo__{name}": value for name, value in settings.items()})
    first = copy_tree(world.sft[1])
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        aligned = run_ppo(task, writer, world.sft, world.reward)
    lines = [line for line in read_log(tmp_path / "metrics.jsonl") if "learning_rate" in line]

    shares = [line["step_kl/share"] for line in lines]
    assert len(shares) == ITERATIONS
    assert all(0 < share <= 1 for share in shares)
    assert (min(shares) < 1) == (step_kl < 1)
    slowed = [line["pace"] < 1 for line in lines]
    assert slowed == [False] + [step_kl < 1] * (ITERATIONS - 1)
    rises = 2  # .3 of 5 iterations, rounded
    for n, line in enumerate(lines):
        share = (1 + n * (rises - 1) / rises) / rises if n < rises else 1 - 0.9 * (n - rises) / (ITERATIONS - rises)
        assert line["learning_rate"] == pytest.approx(RATE * share * line["pace"], rel=1e-5)
    moved = sum(UPDATES * line["learning_rate"] * line["step_kl/share"] for line in lines)
    jax.tree.map(
        lambda after, before, sign: np.testing.assert_allclose(before - after, moved * sign, atol=1e-5),
        aligned.policy[1], first, signs(first),
    )  # fmt: skip


def test_the_rate_is_that_of_the_updates_number():
    """Told to `apply_gradients`, however many updates were made; an optimizer alone counts for itself."""
    optimizer, rate = make_optimizer(Rates(2.0), 0.1, 100, 1.0), schedule(2.0, 0.1, 100)
    params, gradient = {"words": jnp.zeros(1)}, {"words": jnp.ones(1)}
    state = optimizer.init(params)
    for number, made in ((3, True), (4, False), (70, True), (99, True)):
        moved, state, _, _ = apply_gradients(optimizer, gradient, params, state, jnp.asarray(made), jnp.int32(number))
        assert float(moved["words"][0]) == pytest.approx(-float(rate(number)) if made else 0.0, rel=1e-5)
    updates, _ = optimizer.update(gradient, state, params)
    assert float(updates["words"][0]) == pytest.approx(-float(rate(3)), rel=1e-5)  # three were made
