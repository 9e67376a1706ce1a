import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from crs_jax.errors import InputError
from crs_jax.evaluation import signals


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    group_P = np.repeat(np.arange(60), rng.integers(1, 8, 60))
    x_P = rng.normal(size=len(group_P)) + rng.normal(size=60)[group_P]
    y_P = np.exp(0.6 * x_P + rng.normal(size=len(group_P)))
    x_P[::11], y_P[3::17] = np.nan, np.inf
    return x_P, y_P, group_P, np.isfinite(x_P) & np.isfinite(y_P)


def test_correlations_equal_scipy_where_both_are_finite(sample):
    x_P, y_P, group_P, keep_P = sample
    found = signals.correlation(x_P, y_P, group_P)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(x_P[keep_P], y_P[keep_P])[0])
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(x_P[keep_P], y_P[keep_P])[0])
    assert found["n"] == keep_P.sum()
    for name in ("pearson", "spearman"):
        assert found[f"{name}-low"] < found[name] < found[f"{name}-high"]


def test_intervals_resample_groups(sample):
    x_P, y_P, group_P, keep_P = sample
    x_P, y_P, group_P = x_P[keep_P], np.log(y_P[keep_P]), group_P[keep_P]
    found = signals.correlation(x_P, y_P, group_P, bootstrap=3000)
    label_P = (y_P > 0.3).astype(float)
    area = signals.auc(x_P, label_P, group_P, bootstrap=3000)
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(group_P == g) for g in np.unique(group_P)]
    correlations, areas = [], []
    for _ in range(1500):
        drawn = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        correlations.append(scipy.stats.pearsonr(x_P[drawn], y_P[drawn])[0])
        areas.append(sklearn.metrics.roc_auc_score(label_P[drawn], x_P[drawn]))
    expected = np.percentile(correlations, [2.5, 97.5])
    assert (found["pearson-low"], found["pearson-high"]) == pytest.approx(tuple(expected), abs=0.02)
    expected = np.percentile(areas, [2.5, 97.5])
    assert (area["auc-low"], area["auc-high"]) == pytest.approx(tuple(expected), abs=0.015)


def test_auc_equals_sklearn_with_ties():
    rng = np.random.default_rng(2)
    label_P = rng.integers(0, 2, 500).astype(float)
    score_P = np.round(label_P + rng.normal(size=500) * 1.5)
    found = signals.auc(score_P, label_P, np.arange(500), bootstrap=100)
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(label_P, score_P))
    assert (found["n"], found["positives"]) == (500, label_P.sum())
    assert found["auc-low"] < found["auc"] < found["auc-high"]


def test_auc_leaves_out_what_was_not_said():
    found = signals.auc([0.1, 0.9, 0.5, np.nan], [0, 1, np.nan, 1], [0, 1, 2, 3])
    assert (found["auc"], found["n"], found["positives"]) == (1.0, 2, 1)


def test_too_little_to_tell():
    assert math.isnan(signals.correlation([1, 2], [1, 2], [0, 1])["pearson"])
    constant = signals.correlation([1, 1, 1, 1], [1, 2, 3, 4], [0, 1, 2, 3])
    assert math.isnan(constant["spearman"])
    assert constant["n"] == 4
    assert math.isnan(signals.auc([1, 2], [1, 1], [0, 1])["auc"])
    assert signals.auc([], [], [])["n"] == 0


def test_input_that_does_not_fit():
    with pytest.raises(InputError, match="groups"):
        signals.correlation([1, 2, 3], [1, 2, 3], [0, 1])
    with pytest.raises(InputError, match="expected 0 and 1"):
        signals.auc([1, 2], [0, 2], [0, 1])
