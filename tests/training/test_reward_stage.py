"""The reward stage recovers signals planted into real dialogues, judged on dialogues it has not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crs_jax.inputs.features import of_split
from crs_jax.inputs.labels import Labels
from crs_jax.rl.reward import RewardModel
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import shard_batch
from crs_jax.signals.registry import SIGNALS
from crs_jax.training import reward
from crs_jax.training.reward import (
    RIDGE,
    least_squares,
    predict_replies,
    reward_loss,
    run_reward,
    slot_labels,
    split_holdout,
)
from crs_jax.training.sft import make_packer, packed_hidden


def planted(task) -> np.ndarray:
    """`[D, T, 3]`: whether the reply asks, how its items fit what was said and named, how many items it proposes.

    The first is read off the words, the second off the features beside them, the last mostly off these.
    """
    dialogues, split_features = task.corpus.train, of_split(task, "train")
    out = np.full((len(dialogues), max(len(d.turns) for d in dialogues), 3), np.nan, np.float32)
    for d, t in task.replies("train"):
        turn, features_F = dialogues[d].turns[t], split_features.matches(d, t)
        fits = features_F[0] - features_F[1] if features_F[-1] else np.nan
        out[d, t] = "?" in turn.text, fits, min(len(turn.distinct_items), task.config.data.act_items)
    return (out - np.nanmean(out, (0, 1))) / np.nanstd(out, (0, 1))


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    from tiny_task import fresh_models, make_task, tiny_config

    folder = tmp_path_factory.mktemp("larger")
    config = tiny_config(
        folder, simulator__train_dialogues=700, data__reply_tokens=72, model__dropout=0.0, sft__rows=8,
        sft__row_tokens=128, reward__epochs=4.0, reward__learning_rate=6e-3, reward__holdout=0.2,
    )  # fmt: skip
    task = make_task(folder, config)
    return task, fresh_models(task)[0]


def test_planted_signals_are_recovered_on_unseen_dialogues(larger, monkeypatch, fast_code):
    task, sft = larger
    signal_DTS = planted(task)
    monkeypatch.setattr(reward, "label", lambda task, split: Labels(signal_DTS, {}))
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        model = run_reward(task, writer, sft)
    fitted, held = split_holdout(task)
    assert not set(fitted) & set(held)
    assert len(fitted) + len(held) == len(task.corpus.train)
    where = [(d, t) for d, t in task.replies("train") if d in set(held.tolist())]
    found_PS, wanted_PS = predict_replies(task, *model, "train", where), np.array([signal_DTS[at] for at in where])
    assert len(where) > 80
    for s in range(len(SIGNALS)):
        known = np.isfinite(wanted_PS[:, s])
        pearson = np.corrcoef(found_PS[known, s], wanted_PS[known, s])[0, 1]
        assert pearson > 0.85, (s, pearson)
    split_features = of_split(task, "train")
    kernel_FS, _ = least_squares(task, fitted, signal_DTS, split_features)
    by_features_PS = np.array([split_features.matches(d, t) for d, t in where]) @ kernel_FS
    assert np.corrcoef(by_features_PS[:, 0], wanted_PS[:, 0])[0, 1] < 0.5  # what the words say the features do not


def test_loss_is_the_mean_over_labels_that_exist(world, tmp_path):
    """Against a loop over replies; where a label is NaN its signal bears no loss, and padding none at all."""
    task = world.at(tmp_path)
    signal_DTS = planted(task)
    numbers = np.array([1, 3, 4, 8])
    rows = slot_labels(task, make_packer(task, "train", numbers).pack(), numbers, signal_DTS, of_split(task, "train"))
    graph, params, frozen = world.reward
    params = {**params, "heads": jax.tree.map(lambda a: a + 0.1, params["heads"])}
    model: RewardModel = nnx.merge(graph, params, frozen)
    window = task.config.data.window
    loss, metrics = reward_loss(model, shard_batch(rows, task.mesh), window, None)

    hidden_RTD = np.asarray(packed_hidden(model.policy, model.policy.tables(), rows, window, None))
    split_features, errors = of_split(task, "train"), {(place, s): [] for place in ("say", "end") for s in range(3)}
    for r, tokens_T in enumerate(rows["tokens_RT"]):
        replying = False
        for t, token in enumerate(tokens_T):
            replying = token == task.tokenizer.recommender or (replying and token != task.tokenizer.seeker)
            place = {task.tokenizer.say: "say", task.tokenizer.end: "end"}.get(int(token))
            if place and replying and rows["segment_RT"][r, t]:
                d, turn = numbers[rows["dialogue_RT"][r, t]], rows["utterance_RT"][r, t]
                features_F = split_features.matches(d, turn)
                read_S = np.asarray(model.heads(jnp.asarray(hidden_RTD[r, t]), jnp.asarray(features_F)))
                for s in np.flatnonzero(np.isfinite(signal_DTS[d, turn])):
                    errors[place, s].append((read_S[s] - signal_DTS[d, turn, s]) ** 2)
    counts = {key: len(values) for key, values in errors.items()}
    assert counts["say", 0] == counts["end", 0] > counts["say", 1] > 3
    expected = np.mean([np.mean(values) for values in errors.values()])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for s, name in enumerate(SIGNALS):
        each = np.mean([np.mean(errors[place, s]) for place in ("say", "end")])
        assert float(metrics[f"{name}_loss"]) == pytest.approx(float(each), rel=1e-5)


def test_least_squares_equals_ridge_regression(world):
    """On the fitted dialogues alone, each signal on the labels it has; what does not vary has no weight."""
    from sklearn.linear_model import Ridge

    task, signal_DTS = world.task, planted(world.task)
    split_features, numbers = of_split(task, "train"), split_holdout(task)[0]
    kernel_FS, bias_S = least_squares(task, numbers, signal_DTS, split_features)
    at = [(d, t) for d, t in task.replies("train") if d in set(numbers.tolist())]
    fit_PF = np.array([split_features.matches(d, t) for d, t in at], float)
    std_F = fit_PF.std(0)
    assert (std_F > 1e-3).sum() >= 6
    for s in range(len(SIGNALS)):
        label_P = np.array([signal_DTS[d, t, s] for d, t in at], float)
        known = np.isfinite(label_P)
        scale_F = np.array([std if std > 1e-6 else 1.0 for std in fit_PF[known].std(0)])
        ridge = Ridge(RIDGE).fit(fit_PF[known] / scale_F, label_P[known])
        np.testing.assert_allclose(kernel_FS[:, s], ridge.coef_ / scale_F, atol=1e-4)
        assert bias_S[s] == pytest.approx(ridge.intercept_, abs=1e-4)
        found = fit_PF[known] @ kernel_FS[:, s] + bias_S[s]
        if s == 1:  # planted in the fit itself
            assert np.corrcoef(found, label_P[known])[0, 1] > 0.95


def test_features_are_of_what_was_newly_proposed(world):
    """Of each human reply: the fit of its new items alone, as `fits` of an act given by hand."""
    task, split_features = world.task, of_split(world.task, "train")
    some = task.replies("train")[:60]
    for d, t in some:
        turns = task.corpus.train[d].turns
        before = {item for turn in turns[:t] for item in turn.items}
        new = [i for i in turns[t].distinct_items[: task.config.data.act_items] if i not in before]
        act_BM = np.array([[*task.corpus.catalogue.rows(new), *[-1] * (4 - len(new))]], np.int32)
        alone = split_features.matches_of(np.array([d]), np.array([t]), act_BM)[0]
        np.testing.assert_allclose(split_features.matches(d, t), alone, atol=1e-5)
        assert bool(alone.any()) == bool(new)
