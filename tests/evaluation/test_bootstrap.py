import numpy as np
import pytest

from crs_jax.evaluation.bootstrap import interval, resample


def test_resampled_means_equal_plain_concatenation():
    rng = np.random.default_rng(0)
    group_P = np.array([7, 3, 3, 9, 7, 7])
    values_PM = rng.normal(size=(6, 2))
    weights = resample(group_P, 20, seed=1)
    assert (weights.counts_RG.sum(1) == 3).all()
    for counts_G, mean_M in zip(weights.counts_RG, weights.means(values_PM), strict=True):
        drawn = [
            values_PM[group_P == g] for g, n in zip((3, 7, 9), counts_G.astype(int), strict=True) for _ in range(n)
        ]
        np.testing.assert_allclose(mean_M, np.concatenate(drawn).mean(0))


def test_seeded():
    a, b, c = (resample(np.arange(50), 10, seed=s).counts_RG for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        group_P = np.repeat(np.arange(60), 4)
        values_P = rng.normal(size=60)[group_P] + rng.normal(size=240)  # true mean 0, alike within a group
        means_R = resample(group_P, 300, seed=trial).means(values_P[:, None])[:, 0]
        found = interval(values_P.mean(), means_R)
        hits += found["low"] <= 0 <= found["high"]
    assert hits / 300 == pytest.approx(0.95, abs=0.045)


def test_interval_leaves_out_what_is_not_finite():
    assert interval(1.0, np.array([np.nan, 1.0, 2.0]))["low"] == pytest.approx(1.025)
    assert np.isnan(interval(1.0, np.array([np.nan]))["low"])
