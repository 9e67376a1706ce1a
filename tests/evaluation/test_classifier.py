"""Errors of the sentiment classifier: against scikit-learn, loops over answers, and the simulator's truth."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from tiny_task import make_task, tiny_config

from crs_jax.data.dialogue import SEEKER
from crs_jax.data.simulated_truth import Truth
from crs_jax.evaluation.classifier import NO_ANSWERS, classifier_error, say_error, sign_errors
from crs_jax.signals.sentiment import sentiment


def test_sign_errors_equal_scikit_learn():
    rng = np.random.default_rng(0)
    group_P = np.repeat(np.arange(150), 4)
    liked_P = (rng.random(600) < 0.8).astype(float)
    score_P = liked_P - 0.6 + rng.normal(size=600) + 0.5 * rng.normal(size=150)[group_P]
    score_P[rng.random(600) < 0.3] = 0.0
    found, decided = sign_errors(score_P, liked_P, group_P, 2000), score_P != 0
    said, true = score_P[decided] > 0, liked_P[decided] == 1
    assert found["undecided"] == pytest.approx(np.mean(~decided))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, said))
    assert found["balanced-accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(true, said))
    assert found["majority"] == pytest.approx(max(true.mean(), 1 - true.mean()))
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(liked_P, score_P))
    assert (found["n"], found["positives"]) == (600, liked_P.sum())
    resampled = []
    for _ in range(1000):
        rows = (rng.integers(0, 150, 150)[:, None] * 4 + np.arange(4)).ravel()
        drawn = rows[decided[rows]]
        resampled.append([
            np.mean(~decided[rows]),
            sklearn.metrics.accuracy_score(liked_P[drawn] == 1, score_P[drawn] > 0),
            sklearn.metrics.balanced_accuracy_score(liked_P[drawn] == 1, score_P[drawn] > 0),
        ])  # fmt: skip
    expected = np.percentile(resampled, [2.5, 97.5], axis=0)
    for m, name in enumerate(("undecided", "accuracy", "balanced-accuracy")):
        assert (found[f"{name}-low"], found[f"{name}-high"]) == pytest.approx(tuple(expected[:, m]), abs=0.012), name


def test_nothing_decided():
    found = sign_errors(np.zeros(4), np.array([0.0, 1, 1, 1]), np.arange(4), 20)
    assert found["undecided"] == 1.0
    assert found["auc"] == 0.5
    assert all(np.isnan(found[name]) for name in ("accuracy", "balanced-accuracy", "majority"))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    config = tiny_config(cache, simulator__train_dialogues=120, data__validation_dialogues=60)
    return make_task(tmp_path_factory.mktemp("classifier"), config)


def test_of_the_simulators_seekers(task, capsys):
    """Runs of messages joined by hand; the mood is nearer to the words than the utility it follows from."""
    found, truth = classifier_error(task, "validation"), Truth.load(task.corpus.folder)
    column = {item: n for n, item in enumerate(truth.item_ids)}
    scores, liked, utility = [], [], []
    for dialogue in task.corpus.validation:
        turns = dialogue.turns
        for t, turn in enumerate(turns[:-1]):
            if turn.role == SEEKER or turns[t + 1].role != SEEKER:
                continue
            start = next((b for b in range(t, -1, -1) if turns[b].role == SEEKER), -1) + 1
            items = [item for said in turns[start : t + 1] for item in dict.fromkeys(said.items)]
            if not items:
                continue
            stop = next((a for a in range(t + 1, len(turns)) if turns[a].role != SEEKER), len(turns))
            scores += sentiment([" ".join(said.text for said in turns[t + 1 : stop])]).tolist()
            answers = [dialogue.feedback[item].liked for item in items if item in dialogue.feedback]
            answers = [answer for answer in answers if answer is not None]
            liked.append(max(answers) if answers else np.nan)
            utility.append(np.mean(truth.utility(dialogue.dialogue_id)[[column[item] for item in items]]))
    known = np.isfinite(liked)
    assert found["answers"] == len(scores) > 100
    assert found["liked"]["n"] == known.sum()
    auc = sklearn.metrics.roc_auc_score(np.array(liked)[known], np.array(scores)[known])
    assert found["liked"]["auc"] == pytest.approx(auc)
    assert found["utility"]["pearson"] == pytest.approx(scipy.stats.pearsonr(scores, utility)[0], abs=1e-5)
    assert found["mood"]["pearson"] > found["utility"]["pearson"] + 0.05
    assert found["mood"]["n"] == len(scores)
    say_error(found)
    said = capsys.readouterr().out
    assert f"AUC {auc:.2f} (" in said
    assert f"Pearson {found['mood']['pearson']:.2f} with the seeker's mood" in said


def test_a_corpus_without_answers_says_so(task, capsys):
    silent = tuple(dataclasses.replace(dialogue, feedback={}) for dialogue in task.corpus.validation)
    corpus = dataclasses.replace(task.corpus, name="opendialkg", validation=silent)
    found = classifier_error(dataclasses.replace(task, corpus=corpus), "validation")
    assert found["liked"] == NO_ANSWERS
    assert set(found) == {"classifier", "answers", "liked"}
    say_error(found)
    assert NO_ANSWERS in capsys.readouterr().out
