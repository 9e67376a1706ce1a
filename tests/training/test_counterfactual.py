"""Proposals that nobody made: what is drawn, their label, and their share of the reward model's loss."""

import jax
import numpy as np
import pytest
from flax import nnx

from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.windows import make_windows
from crs_jax.inputs.features import of_split
from crs_jax.inputs.labels import label
from crs_jax.inputs.task import log_popularity
from crs_jax.rl.reward import RewardModel, predict
from crs_jax.runtime.sharding import shard_batch
from crs_jax.signals.engagement import EngagementModel
from crs_jax.signals.registry import column
from crs_jax.training.counterfactual import Counterfactuals, known_by_then, not_taken_up
from crs_jax.training.ppo_stage import contexts_of
from crs_jax.training.reward import reward_loss, slot_labels, split_holdout
from crs_jax.training.sft import make_packer


@pytest.fixture(scope="module")
def labels(world):
    return label(world.task, "train").signal_DTS


@pytest.fixture(scope="module")
def others(world, labels):
    return Counterfactuals(world.task, split_holdout(world.task)[0], labels, of_split(world.task, "train"))


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


def test_copies_differ_in_the_item_alone(world, others):
    """The logged reply first, then copies: item replaced in act and words, none that anyone named or answers with."""
    task, fitted = world.task, set(split_holdout(world.task)[0].tolist())
    dialogues, catalogue, offset = task.corpus.train, task.corpus.catalogue, task.layout.item_offset
    rows = others.draw(200, 1)
    prompts = make_windows(task.config, task.encoded["train"], others.where, task.tokenizer).tokens_BP
    place = {prompt.tobytes(): at for prompt, at in zip(prompts, others.where, strict=True)}
    drawn = np.zeros(len(catalogue))
    for r in range(200):
        d, t = place[rows["other_prompt_RP"][r].tobytes()]
        assert d in fitted
        (proposed,) = dialogues[d].turns[t].distinct_items
        reply = task.encoded["train"][d][t][2 : 2 + task.config.data.reply_tokens]
        items = [int(reply_L[0]) - offset for reply_L in rows["other_tokens_RGL"][r]]
        for item, reply_L, real_L in zip(items, rows["other_tokens_RGL"][r], rows["other_real_RGL"][r], strict=True):
            own = offset + catalogue.index[proposed]
            assert reply_L[real_L].tolist() == [offset + item if token == own else token for token in reply]
        assert items[0] == catalogue.index[proposed]
        assert len(set(items)) == len(items) == 1 + task.config.reward.alternatives
        end = next(
            (n for n in range(t + 1, len(dialogues[d].turns)) if dialogues[d].turns[n].role == "recommender"), None
        )
        barred = {i for turn in dialogues[d].turns[:end] for i in turn.items}
        assert not {catalogue.items[i].item_id for i in items[1:]} & barred
        drawn[items[1:]] += 1
    named = np.exp(log_popularity(task))
    assert np.corrcoef(drawn, named)[0, 1] > 0.4
    again, other = others.draw(200, 1), others.draw(200, 2)
    np.testing.assert_array_equal(again["other_tokens_RGL"], rows["other_tokens_RGL"])
    assert not np.array_equal(other["other_tokens_RGL"], rows["other_tokens_RGL"])


def test_labels_are_real_for_the_logged_and_one_for_the_copies(others, labels):
    rows = others.draw(50, 3)
    assert (rows["other_label_RG"][:, 1:] == np.float32(others.label)).all()
    real = {float(labels[d, t, 0]) for d, t in others.where}
    assert {float(x) for x in rows["other_label_RG"][:, 0]} <= real
    assert len({float(x) for x in rows["other_label_RG"][:, 0]}) > 5


def test_loss_adds_the_squared_error_of_each_reply_read_alone(world, others, labels):
    """Against `predict` on each reply, features and all; weight 0 leaves the loss as it is without them."""
    task, rng = world.task, np.random.default_rng(0)
    graph, params, frozen = world.reward
    heads = jax.tree.map(lambda a: a + np.asarray(rng.normal(0, 0.3, a.shape), np.float32), params["heads"])
    model: RewardModel = nnx.merge(graph, {**params, "heads": heads}, frozen)
    numbers = np.array([1, 3, 4, 8])
    rows = slot_labels(task, make_packer(task, "train", numbers).pack(), numbers, labels, of_split(task, "train"))
    drawn = others.draw(len(rows["tokens_RT"]), 5)
    window, split_features = task.config.data.window, of_split(task, "train")
    bare, _ = reward_loss(model, shard_batch(rows, task.mesh), window, None)
    both, metrics = reward_loss(model, shard_batch({**rows, **drawn}, task.mesh), window, None, None, 0.7)
    prompts = make_windows(task.config, task.encoded["train"], others.where, task.tokenizer).tokens_BP
    place = {prompt.tobytes(): at for prompt, at in zip(prompts, others.where, strict=True)}
    errors, gaps, run = [], [], jax.jit(predict)
    for r in range(len(drawn["other_label_RG"])):
        d, t = place[drawn["other_prompt_RP"][r].tobytes()]
        evidence = split_features.at(np.array([d]), np.array([t]))
        said = []
        for g, label_of in enumerate(drawn["other_label_RG"][r]):
            one = [drawn[name][r : r + 1] for name in ("other_prompt_RP", "other_mask_RP")]
            reply = [drawn[name][r : r + 1, g : g + 1] for name in ("other_tokens_RGL", "other_real_RGL")]
            read = run(model, *one, *reply, evidence)[:2]
            values = [float(read_BS[0, column("engagement")]) for read_BS in read]
            errors += [(value - label_of) ** 2 for value in values]
            said.append(values[0])
        gaps.append(said[0] - np.mean(said[1:]))
    assert float(metrics["counterfactual_loss"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(metrics["real_over_other"]) == pytest.approx(np.mean(gaps), rel=1e-3, abs=1e-5)
    assert float(both - bare) == pytest.approx(0.7 * np.mean(errors), rel=1e-3)
    zero, _ = reward_loss(model, shard_batch({**rows, **drawn}, task.mesh), window, None, None, 0.0)
    assert float(zero) == pytest.approx(float(bare), rel=1e-6)


def test_answers_and_the_rest_of_the_run_are_known():
    def turn(role, *items):
        return Turn(role, MENTION * len(items) or "x", items)

    dialogue = Dialogue(
        "d",
        (turn(SEEKER, "a"), turn(RECOMMENDER, "b"), turn(RECOMMENDER, "c"), turn(SEEKER, "d"), turn(SEEKER, "e"),
         turn(RECOMMENDER, "f")),
        {},
    )  # fmt: skip
    assert known_by_then(dialogue, 2) == {"a", "b", "c", "d", "e"}
    assert known_by_then(dialogue, 5) == {"a", "b", "c", "d", "e", "f"}


def test_ppo_starts_from_dialogues_the_reward_model_was_not_fitted_on(world, tmp_path):
    task = world.at(tmp_path)
    fitted, held = split_holdout(task)
    found = {d for d, _ in contexts_of(task)}
    assert found
    assert found <= set(held.tolist())
    assert not found & set(fitted.tolist())
    assert contexts_of(world.at(tmp_path, ppo__unseen=False)) == task.replies("train")


def test_ppo_starts_where_something_new_was_proposed(world, tmp_path):
    task = world.at(tmp_path, ppo__unseen=False, ppo__recommending=True)
    found = set(contexts_of(task))
    for d, t in task.replies("train"):
        turns = task.corpus.train[d].turns
        before = {item for turn in turns[:t] for item in turn.items}
        assert ((d, t) in found) == bool(set(turns[t].items) - before)
