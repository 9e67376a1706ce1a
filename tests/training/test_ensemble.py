"""An ensemble of reward models: each member is what it would be alone, and PPO is paid the mean less the spread."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from crs_jax.evaluation.optimum import item_rewards
from crs_jax.evaluation.policies import judge_replies
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.features import of_split
from crs_jax.inputs.labels import label
from crs_jax.inputs.replies import reply_arrays
from crs_jax.rl.reward import Normaliser, members, stack
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import AXES, shardings
from crs_jax.training import ensemble
from crs_jax.training import reward as reward_stage
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.ensemble import drawn
from crs_jax.training.ppo_stage import Aligned, build
from crs_jax.training.ppo_validation import Validation
from crs_jax.training.reward import least_squares, predict_replies, run_reward, split_holdout

PLAIN = Normaliser(np.zeros(3, np.float32), np.ones(3, np.float32), np.float32(1))


def fit(world, folder, **changes):
    task = world.at(folder, **changes)
    with MetricsWriter(folder, tensorboard=False) as writer:
        return run_reward(task, writer, world.sft)


def same_bits(found, expected) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.fixture(scope="module")
def three(world, tmp_path_factory):
    """Graph, parameters and frozen arrays of an ensemble of three."""
    return fit(world, tmp_path_factory.mktemp("three"), reward__ensemble=3)


def test_each_member_is_the_model_it_would_be_alone(world, three, tmp_path, monkeypatch):
    """Bit for bit: the first is the reward model without an ensemble, the last does not feel who is beside it."""
    found = members(three[1])
    assert len(found) == 3
    assert same_bits(found[0], fit(world, tmp_path / "first")[1])
    member = ensemble.member
    monkeypatch.setattr(reward_stage, "member", lambda task, number, *more: member(task, 2 * number, *more))
    assert same_bits(found[2], members(fit(world, tmp_path / "last", reward__ensemble=2)[1])[1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for name in ("kernel", "feature_kernel"):
            assert np.abs(found[a]["heads"][name] - found[b]["heads"][name]).max() > 1e-3
        assert not same_bits(found[a]["policy"]["words"], found[b]["policy"]["words"])


def test_members_lie_on_the_mesh_as_one_alone(world):
    mesh = AbstractMesh((2, 2, 2), AXES)
    params = world.reward[1]
    laid = jax.tree.map(lambda sharding: sharding.spec, shardings(params, mesh))
    assert any(any(spec) for spec in jax.tree.leaves(laid))
    found = shardings(stack([params] * 3), mesh)
    assert jax.tree.map(lambda sharding: sharding.spec, found) == stack([laid] * 3)


def test_dialogues_are_drawn_with_repetition():
    fitted = np.arange(0, 3000, 3)
    assert drawn(0, fitted, 0) is fitted
    first, second = drawn(0, fitted, 1), drawn(0, fitted, 2)
    for numbers in (first, second):
        assert len(numbers) == len(fitted)
        assert set(numbers) <= set(fitted)
        assert len(set(numbers)) / len(fitted) == pytest.approx(1 - np.exp(-1), abs=0.04)  # of a bootstrap
        assert (np.diff(numbers) >= 0).all()
    assert len(set(first) & set(second)) < 0.5 * len(fitted)
    np.testing.assert_array_equal(drawn(0, fitted, 1), first)
    assert not np.array_equal(drawn(1, fitted, 1), first)


def test_a_dialogue_counts_as_often_as_it_was_drawn(world):
    """Least squares against scikit-learn's with the number of draws as weights; copies of a reply as often."""
    from sklearn.linear_model import Ridge

    task, split_features = world.task, of_split(world.task, "train")
    signal_DTS, numbers = label(task, "train").signal_DTS, drawn(0, split_holdout(world.task)[0], 1)
    times = Counter(numbers.tolist())
    assert max(times.values()) > 1
    kernel_FS, bias_S = least_squares(task, numbers, signal_DTS, split_features)
    at = [(d, t) for d, t in task.replies("train") if times[d] and np.isfinite(signal_DTS[d, t, 0])]
    fit_PF, weight_P = (
        np.array([split_features.matches(d, t) for d, t in at], float),
        np.array([times[d] for d, _ in at]),
    )
    mean_F = np.average(fit_PF, axis=0, weights=weight_P)
    std_F = np.sqrt(np.average((fit_PF - mean_F) ** 2, axis=0, weights=weight_P))
    scale_F = np.where(std_F > 1e-6, std_F, 1.0)
    ridge = Ridge(reward_stage.RIDGE).fit(fit_PF / scale_F, [signal_DTS[d, t, 0] for d, t in at], weight_P)
    np.testing.assert_allclose(kernel_FS[:, 0], ridge.coef_ / scale_F, atol=1e-4)
    assert bias_S[0] == pytest.approx(ridge.intercept_, abs=1e-4)

    once, others = (
        Counterfactuals(task, some, signal_DTS, split_features, 1) for some in (np.unique(numbers), np.sort(numbers))
    )
    assert Counter(others.where) == {(d, t): times[d] for d, t in once.where}
    first = Counterfactuals(task, numbers, signal_DTS, split_features)
    assert not np.array_equal(others.draw(8, 1)["other_tokens_RGL"], first.draw(8, 1)["other_tokens_RGL"])


def test_held_out_predictions_are_the_members_means(world, three):
    graph, params, frozen = three
    where = world.task.replies("validation")[:10]
    found, *each = (
        predict_replies(world.task, graph, own, frozen, "validation", where) for own in (params, *members(params))
    )
    np.testing.assert_allclose(found, np.mean(each, 0), atol=1e-5)
    assert np.std(each, 0).min() > 1e-5


def test_scores_of_replies_and_acts_are_the_mean_less_the_spread(world, three, tmp_path):
    """In evaluation, of human replies and of single acts: against NumPy on each member's rewards alone."""
    task = world.at(tmp_path, reward__ensemble=3, reward__spread=0.8, reward__clip=1e6)
    graphs, _, frozen_models = build(task, world.sft, three)
    aligned = Aligned(world.sft, graphs, frozen_models, PLAIN)
    where = task.replies("test")[:8]
    contexts, replies = contexts_at(task, "test", where), reply_arrays(task, "test", where)
    rows = np.array([[0, 3]] * len(where), np.int32)

    def both(params):
        of = aligned._replace(frozen_models=frozen_models._replace(reward=params))
        return judge_replies(task, of, world.sft, contexts, *replies, "x"), item_rewards(task, *of[1:], contexts, rows)

    (found, acts_IA), *each = (both(params) for params in (three[1], *members(three[1])))
    total_JB, acts_JIA = (np.array(values, float) for values in zip(*((j.reward_B, a) for j, a in each), strict=True))
    assert np.std(total_JB, 0).min() > 1e-3
    np.testing.assert_allclose(found.spread_B, np.std(total_JB, 0), atol=1e-4)
    np.testing.assert_allclose(found.reward_B, np.mean(total_JB, 0) - 0.8 * np.std(total_JB, 0), atol=1e-4)
    np.testing.assert_allclose(acts_IA, np.mean(acts_JIA, 0) - 0.8 * np.std(acts_JIA, 0), atol=1e-4)
    np.testing.assert_allclose(found.signal_BS, np.mean([j.signal_BS for j, _ in each], 0), atol=1e-4)
    for judged, _ in each:
        np.testing.assert_array_equal(judged.spread_B, 0.0)


def test_the_check_on_validation_contexts_takes_the_spread_off(world, three, tmp_path):
    """In proportion: its replies are the same each time."""
    changes = {"reward__ensemble": 3, "reward__spread": 0.5, "reward__clip": 1e6, "ppo__validation_contexts": 8}
    task = world.at(tmp_path, **changes)
    graphs, params, frozen_models = build(task, world.sft, three)
    assert frozen_models.spread == 0.5
    validation, found = Validation(task, graphs, frozen_models), []
    for spread in (0.0, 0.5, 1.0):
        validation.frozen_models = frozen_models._replace(spread=jnp.float32(spread))
        found.append(validation(params["policy"], PLAIN)["validation/reward"])
    fell = [a - b for a, b in itertools.pairwise(found)]
    assert fell[0] > 0.005
    assert fell[1] == pytest.approx(fell[0], rel=1e-3)
