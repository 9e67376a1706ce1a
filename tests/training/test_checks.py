"""Self-checks at run time: a fault injected into each stops the run, saying what was expected, found and where."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import fresh_models

from crs_jax.rl.ppo import gae
from crs_jax.rl.reward import Scores
from crs_jax.rl.scoring import TokenMasks
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training import advantages, checks, ppo_stage
from crs_jax.training.checks import SelfCheckError
from crs_jax.training.ppo_stage import run_ppo


def align(world, workdir, **changes):
    task = world.at(workdir, **changes)
    with MetricsWriter(workdir, tensorboard=False) as writer:
        return run_ppo(task, writer, world.sft, world.reward)


def test_a_healthy_run_passes(world, faults, tmp_path):
    align(world, tmp_path)
    first = next(line for line in read_log(tmp_path / "metrics.jsonl") if "kl/max" in line)
    assert first["step"] == 1
    # Far inside the bounds, so that the bounds are not what hides a fault.
    assert 0 <= first["ratio_error"] < 1e-4
    assert 0 <= first["kl/max"] < 1e-4
    assert 0 < first["sampler_gap"] < 1e-4


@pytest.mark.parametrize(
    ("fault", "strength", "message"),
    [
        ("old_logp", 0.01, "iteration 0: ratio of new to old policy on the first minibatch: expected 1 within 0.001"),
        (
            "reference_temperature",
            1.01,
            "iteration 0: log-ratio to the reference policy, RMS over acts: expected 0 within 0.001",
        ),
        (
            "sampler_temperature",
            1.01,
            "iteration 0: gap between sampler and scorer log-probs, RMS over acts: expected 0 within 0.001",
        ),
        ("same_key", True, "iteration 1: expected a fresh sampling key, found that of iteration 0"),
        (
            "same_draws",
            1.0,
            "before ppo iteration 0: expected two keys to draw different replies .*, found the same 16",
        ),
    ],
)
def test_a_fault_stops_the_run(world, faults, tmp_path, fault, strength, message):
    setattr(faults, fault, strength)
    with pytest.raises(SelfCheckError, match=message):
        align(world, tmp_path)
    kept = sorted(path.name.split(".")[0] for path in (tmp_path / "checkpoints" / "ppo").glob("[0-9]*"))
    assert kept == (["1"] if fault == "same_key" else [])


def test_a_value_head_that_does_not_start_at_zero_stops_the_run(world, faults, tmp_path, monkeypatch):
    build = ppo_stage.build

    def biased(*arguments):
        graphs, params, frozen_models = build(*arguments)
        params["head"]["kernel"] = params["head"]["kernel"] + 0.1
        return graphs, params, frozen_models

    monkeypatch.setattr(ppo_stage, "build", biased)
    with pytest.raises(SelfCheckError, match="explained variance of the fresh detached value head: expected 0 within"):
        align(world, tmp_path)


def test_a_temperature_near_zero_is_not_blamed_on_the_sampler_alone(world, tmp_path):
    with pytest.raises(SelfCheckError, match=r"found the same 16 .*, or at --config\.ppo\.temperature=1e-06 only the"):
        align(world, tmp_path, ppo__temperature=1e-6)


@pytest.mark.slow
def test_a_healthy_run_in_bfloat16_with_peaked_logits_passes(world, tmp_path):
    """All three comparisons, through the stage; `test_rounding.py` has the bounds and deeper models."""
    task = world.at(tmp_path, model__dtype="bfloat16", ppo__iterations=1, ppo__validation_contexts=0)
    (graph, params, frozen), reward = fresh_models(task)
    params["trunk"]["final_scale"] = 500 * params["trunk"]["final_scale"]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        run_ppo(task, writer, (graph, params, frozen), reward)
    first = next(line for line in read_log(tmp_path / "metrics.jsonl") if "kl/max" in line)
    assert first["sampler_gap"] > 0.1  # single tokens, a hundred times the floor of the bounds
    assert not any(name.startswith("check/") for name in first)


def test_checks_can_be_left_out(world, faults, tmp_path):
    faults.reference_temperature = 1.01
    align(world, tmp_path, ppo__checks=False, ppo__iterations=1)
    lines = [line for line in read_log(tmp_path / "metrics.jsonl") if "kl/max" in line]
    assert lines[0]["kl/max"] > 1e-3


def test_a_check_on_a_metric_that_is_not_a_number_fails():
    healthy = {"check/ratio": 0.0, "rewards_finite": 1.0, "explained_variance": 0.0}
    for name, part, figure in itertools.product(
        ("sampler", "reference"), checks.PARTS, ("rms", "mean", "quantile", "rest")
    ):
        healthy[f"check/{name}/{part}/{figure}"] = 0.0
    given = dict.fromkeys(checks.PARTS, checks.Scale(1.0, 1.0)), 1e-6, "shared"
    checks.check_first(healthy, *given)
    for name in healthy:
        if not name.endswith("/rest"):
            with pytest.raises(SelfCheckError, match="found nan"):
                checks.check_first({**healthy, name: float("nan")}, *given)
    with pytest.raises(SelfCheckError, match="rewards and log-probs finite: expected 1 within 0, found 0"):
        checks.check_first({**healthy, "rewards_finite": 0.0}, *given)


def test_integer_rewards_are_refused():
    """0.7 would become 0 and -1.9 would become -1, in silence."""
    spot_BR = jnp.array([[False, True]])
    split = TokenMasks(spot_BR, ~spot_BR, jnp.array([[0]]), spot_BR, spot_BR, jnp.array([True]))
    fine = Scores(jnp.array([0.7]), jnp.array([-1.9]), jnp.zeros((1, 3)), jnp.zeros(1))
    kl_BR = jnp.zeros((1, 2))
    np.testing.assert_allclose(
        advantages.token_rewards(fine, split, kl_BR, kl_BR, 0.1, 0.1, 0.1, 0.0), [[0.0, -1.9]], rtol=1e-6
    )
    with pytest.raises(TypeError, match="act_score_B is int32, expected a floating type"):
        advantages.token_rewards(fine._replace(act_B=jnp.array([1])), split, kl_BR, kl_BR, 0.1, 0.1, 0.1, 0.0)
    with pytest.raises(TypeError, match="reward_BR is int32"):
        gae(jnp.array([[0, 1]]), jnp.zeros((1, 2)), jnp.ones((1, 2), bool), 1.0, 0.95)
