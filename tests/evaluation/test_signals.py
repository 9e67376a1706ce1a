import itertools
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from crs_jax.evaluation import signals
from crs_jax.runtime.errors import InputError


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


def test_calibration_equals_a_regression_and_a_loop_over_bins(sample):
    x_P, y_P, group_P, keep_P = sample
    found = signals.calibration(x_P, y_P, group_P, bootstrap=2000)
    x_P, y_P, group_P = x_P[keep_P], y_P[keep_P], group_P[keep_P]

    def figures(x_P, y_P, edges):
        line, error = scipy.stats.linregress(x_P, y_P), 0.0
        for low, high in itertools.pairwise(edges):
            inside = (low <= x_P) & (x_P < high)
            if inside.any():
                error += inside.mean() * abs(y_P[inside].mean() - x_P[inside].mean())
        return line.slope, line.intercept, error

    ordered = np.sort(x_P)
    sizes = [len(x_P) // 10 + (k < len(x_P) % 10) for k in range(10)]
    edges = [*ordered[np.cumsum([0, *sizes[:-1]])], np.inf]
    value = figures(x_P, y_P, edges)
    assert [found[name] for name in ("slope", "intercept", "ece")] == pytest.approx(value)
    rng, members = np.random.default_rng(3), [np.flatnonzero(group_P == g) for g in np.unique(group_P)]
    drawn = [np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))]) for _ in range(1500)]
    resampled = np.array([figures(x_P[i], y_P[i], edges) for i in drawn])
    resampled[:, 2] -= resampled[:, 2].mean() - value[2]
    for m, (name, tolerance) in enumerate((("slope", 0.05), ("intercept", 0.05), ("ece", 0.05))):
        expected = np.percentile(resampled[:, m], [2.5, 97.5])
        assert (found[f"{name}-low"], found[f"{name}-high"]) == pytest.approx(tuple(expected), abs=tolerance), name
        assert found[f"{name}-low"] < found[name] < found[f"{name}-high"]


def test_a_calibrated_prediction_shows_the_error_of_chance_and_no_more():
    """Slope 1, intercept 0; the mean of many samples' errors is what one sample foretells of its own noise."""
    rng, found = np.random.default_rng(4), []
    for _ in range(40):
        x_P = rng.normal(size=400)
        found.append(signals.calibration(x_P, x_P + rng.normal(size=400), np.arange(400), bootstrap=200))
    mean = {name: np.mean([f[name] for f in found]) for name in found[0]}
    assert mean["slope"] == pytest.approx(1, abs=0.03)
    assert mean["intercept"] == pytest.approx(0, abs=0.03)
    assert mean["ece"] == pytest.approx(np.sqrt(2 / np.pi / 40), rel=0.08)  # E|mean of 40 normal values|
    assert mean["ece-chance"] == pytest.approx(mean["ece"], rel=0.08)


def test_an_overconfident_prediction():
    x_P = np.linspace(-1, 1, 200)
    found = signals.calibration(2 * x_P + 1, x_P, np.arange(200), bootstrap=20)
    assert (found["slope"], found["intercept"]) == pytest.approx((0.5, -0.5))
    assert found["ece"] == pytest.approx(1.0, abs=0.01)  # |x + 1| over x in -1..1, bins never mix signs
    assert found["ece-chance"] < 0.05


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
    for few in (signals.calibration([1, 1, 1, 1], [1, 2, 3, 4], [0, 1, 2, 3]), signals.calibration([], [], [])):
        assert all(math.isnan(value) for value in few.values())
    assert signals.auc([], [], [])["n"] == 0


def test_input_that_does_not_fit():
    with pytest.raises(InputError, match="groups"):
        signals.correlation([1, 2, 3], [1, 2, 3], [0, 1])
    with pytest.raises(InputError, match="expected 0 and 1"):
        signals.auc([1, 2], [0, 2], [0, 1])
