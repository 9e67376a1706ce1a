"""Signals against what seekers answered: outcomes by hand, the table against scipy and scikit-learn over a loop."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score
from tiny_task import make_task, tiny_config

from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.evaluation.observed import answered, observed, signal_table
from crs_jax.signals.reactions import reactions


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    config = tiny_config(cache, simulator__train_dialogues=60, reward__beta=0.0, reward__gamma=0.5)
    return make_task(tmp_path_factory.mktemp("observed"), config)


def test_answers_by_hand():
    feedback = {"1": Feedback(1, 1, 0), "2": Feedback(1, None, 1), "3": Feedback(1, None, None)}
    turns = (
        Turn(RECOMMENDER, MENTION, ("1",)),
        Turn(RECOMMENDER, MENTION, ("2",)),
        Turn(SEEKER, "no", ()),
        Turn(RECOMMENDER, MENTION, ("1",)),
        Turn(SEEKER, "no", ()),
        Turn(RECOMMENDER, MENTION * 2, ("3", "4")),
        Turn(SEEKER, "no", ()),
    )
    dialogue = Dialogue("d", turns, feedback)
    both, first, none = reactions(dialogue)
    assert [answered(dialogue, r, "liked") for r in (both, first)] == [1, 0]
    assert [answered(dialogue, r, "seen") for r in (both, first)] == [1, 1]
    assert np.isnan(answered(dialogue, none, "liked"))


def test_who_is_in_the_table(task):
    signals, outcomes, group_P = observed(task, "train")
    expected = [
        (d, r)
        for d, dialogue in enumerate(task.corpus.train)
        for r in reactions(dialogue)
        if r.after and any(turn.items for turn in r.proposal)
    ]
    assert group_P.tolist() == [d for d, _ in expected]
    assert all(len(values) == len(expected) > 50 for values in (*signals.values(), *outcomes.values()))
    for p, (_, r) in enumerate(expected):
        sent, answer = r.proposal[-1].seconds, r.after[0].seconds
        if sent is None or answer is None:
            assert np.isnan(signals["latency"][p])
        else:
            assert signals["latency"][p] == pytest.approx(np.log1p(answer - sent))
        assert outcomes["continuation"][p] == r.returns
    engagement, sentiment = signals["engagement"], signals["sentiment"]
    both = np.isfinite(engagement) & np.isfinite(sentiment)
    np.testing.assert_allclose(signals["reward"][both], (engagement + 0.5 * sentiment)[both], rtol=1e-5)


def test_table_equals_scipy_and_sklearn(task):
    signals, outcomes, _ = observed(task, "train")
    table = signal_table(task, "train")
    assert set(table) == set(outcomes)
    assert not {"continuation", "engagement", "reward"} & set(table["continuation"])
    for outcome, rows in table.items():
        for name, found in rows.items():
            keep = np.isfinite(signals[name]) & np.isfinite(outcomes[outcome])
            x, y = signals[name][keep], outcomes[outcome][keep]
            assert found["n"] == len(x)
            assert found["positives"] == y.sum()
            assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-5)
            assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-5)
            assert found["auc"] == pytest.approx(roc_auc_score(y, x), abs=1e-5)
            assert found["auc-low"] <= found["auc"] <= found["auc-high"]
    assert table["liked"]["uptake"]["auc"] > 0.6  # the simulator's seekers take up what they like, and refuse the rest
    assert table["liked"]["sentiment"]["auc"] > 0.6
