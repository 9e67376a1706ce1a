"""Proposals that nobody made: what is drawn, their label, and their share of the reward model's loss."""

import jax
import numpy as np
import pytest
from flax import nnx

from crs_jax.models.heads import SIGNALS
from crs_jax.rl.reward import RewardModel, predict
from crs_jax.sharding import shard_batch
from crs_jax.signals.engagement import EngagementModel
from crs_jax.training.counterfactual import Counterfactuals, not_taken_up
from crs_jax.training.labels import label
from crs_jax.training.ppo_stage import contexts_of
from crs_jax.training.replies import Wishes
from crs_jax.training.reward import reward_loss, slot_labels, split_holdout
from crs_jax.training.sft import make_packer


@pytest.fixture(scope="module")
def labels(world):
    return label(world.task, "train").signal_DTS


@pytest.fixture(scope="module")
def others(world, labels):
    return Counterfactuals(world.task, split_holdout(world.task)[0], labels)


def test_label_is_the_mean_of_what_was_not_taken_up(world, labels):
    uptake = EngagementModel.fit(world.task.corpus.train).parts(world.task.corpus.train)["uptake"]
    left, up = [], []
    for d, row in enumerate(uptake):
        for t, taken in enumerate(row):
            if np.isfinite(taken) and np.isfinite(labels[d, t, 0]):
                (up if taken > 0 else left).append(float(labels[d, t, 0]))
    assert len(left) > 20
    assert not_taken_up(world.task, labels) == pytest.approx(np.mean(left), abs=1e-6)
    assert np.mean(left) < np.mean(up) - 0.3


def test_drawn_items_are_new_distinct_and_popular(world, others):
    task, fitted = world.task, set(split_holdout(world.task)[0].tolist())
    dialogues, catalogue, layout = task.corpus.train, task.corpus.catalogue, task.layout
    rows = others.draw(200, 1)
    place = {others._windows.tokens_BP[i].tobytes(): at for i, at in enumerate(others.where)}
    drawn = np.zeros(len(catalogue))
    for r in range(200):
        d, t = place[rows["other_prompt_RP"][r].tobytes()]
        assert d in fitted
        items = rows["other_act_RG2"][r, :, 0] - layout.item_offset
        barred = {i for turn in dialogues[d].turns[: t + 1] for i in turn.items}
        assert not {catalogue.items[i].item_id for i in items} & barred
        assert len(set(items.tolist())) == len(items) == task.config.reward.alternatives
        drawn[items] += 1
    assert (rows["other_act_RG2"][..., 1] == layout.say).all()
    named = np.zeros(len(catalogue))
    for dialogue in dialogues:
        for turn in dialogue.turns:
            if turn.role == "recommender":
                named[catalogue.rows(turn.distinct_items)] += 1
    assert np.corrcoef(drawn, named)[0, 1] > 0.4
    again, other = others.draw(200, 1), others.draw(200, 2)
    np.testing.assert_array_equal(again["other_act_RG2"], rows["other_act_RG2"])
    assert not np.array_equal(other["other_act_RG2"], rows["other_act_RG2"])


def test_loss_adds_the_squared_error_of_the_act_read_alone(world, others, labels):
    """Against `predict` on each act, features and all; weight 0 leaves the loss as it is without them."""
    task, rng = world.task, np.random.default_rng(0)
    graph, params, frozen = world.reward
    heads = jax.tree.map(lambda a: a + np.asarray(rng.normal(0, 0.3, a.shape), np.float32), params["heads"])
    model: RewardModel = nnx.merge(graph, {**params, "heads": heads}, frozen)
    numbers = np.array([1, 3, 4, 8])
    rows = slot_labels(task, make_packer(task, "train", numbers).pack(), numbers, labels, Wishes(task, "train"))
    drawn = others.draw(len(rows["tokens_RT"]), 5)
    window = task.config.data.window
    bare, _ = reward_loss(model, shard_batch(rows, task.mesh), window, None)
    both, metrics = reward_loss(model, shard_batch({**rows, **drawn}, task.mesh), window, None, None, 0.7)
    place = {others._windows.tokens_BP[i].tobytes(): i for i in range(len(others.where))}
    errors = []
    for r in range(len(drawn["other_act_RG2"])):
        i = place[drawn["other_prompt_RP"][r].tobytes()]
        vectors = [others._vectors[part][i : i + 1] for part in ("text_BE", "named_BE")]
        for act in drawn["other_act_RG2"][r]:
            say_BS, _, _ = predict(
                model, drawn["other_prompt_RP"][r : r + 1], drawn["other_mask_RP"][r : r + 1], act[None, None],
                np.ones((1, 1, 2), bool), *vectors, np.full((1, 1), -1), task.content_NE,
            )  # fmt: skip
            errors.append((float(say_BS[0, SIGNALS.index("engagement")]) - others.label) ** 2)
    assert float(metrics["counterfactual_loss"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(both - bare) == pytest.approx(0.7 * np.mean(errors), rel=1e-3)
    zero, _ = reward_loss(model, shard_batch({**rows, **drawn}, task.mesh), window, None, None, 0.0)
    assert float(zero) == pytest.approx(float(bare), rel=1e-6)


def test_ppo_starts_from_dialogues_the_reward_model_was_not_fitted_on(world, tmp_path):
    task = world.at(tmp_path)
    fitted, held = split_holdout(task)
    found = {d for d, _ in contexts_of(task)}
    assert found
    assert found <= set(held.tolist())
    assert not found & set(fitted.tolist())
    assert contexts_of(world.at(tmp_path, ppo__unseen=False)) == task.replies("train")
