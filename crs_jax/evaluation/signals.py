"""How well predicted signals agree with observed ones, and signals with what the seeker later said they liked."""

from __future__ import annotations

import numpy as np
import scipy.stats

from crs_jax.evaluation.bootstrap import Weights, interval, resample
from crs_jax.runtime.errors import InputError

BINS = 10  # of equal count, for the calibration error
_CHUNK = 100  # resamples weighed at a time


def _checked(x_P: np.ndarray, y_P: np.ndarray, group_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat float64 copies without the positions where either value is not finite."""
    x_P, y_P = (np.asarray(a, np.float64).reshape(-1) for a in (x_P, y_P))
    group_P = np.asarray(group_P).reshape(-1)
    if not len(x_P) == len(y_P) == len(group_P):
        raise InputError(f"found {len(x_P)} and {len(y_P)} values in {len(group_P)} groups, expected as many of each")
    keep_P = np.isfinite(x_P) & np.isfinite(y_P)
    return x_P[keep_P], y_P[keep_P], group_P[keep_P]


def correlation(
    predicted_P: np.ndarray, observed_P: np.ndarray, group_P: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Pearson's and Spearman's correlation where both are finite.

    Args:
      group_P: the dialogue of each value; 95 % intervals resample whole dialogues. Spearman's interval keeps the ranks
        of the whole sample.

    Returns:
      `{"pearson", "pearson-low", "pearson-high", "spearman", "spearman-low", "spearman-high", "n"}`; NaN (but n) with
      fewer than three values or where one side is constant.
    """
    x_P, y_P, group_P = _checked(predicted_P, observed_P, group_P)
    out: dict[str, float] = {}
    for name in ("pearson", "spearman"):
        nan = float("nan")
        out |= {name: nan, f"{name}-low": nan, f"{name}-high": nan}
        if len(x_P) >= 3 and np.ptp(x_P) > 0 and np.ptp(y_P) > 0:
            a_P, b_P = (x_P, y_P) if name == "pearson" else (scipy.stats.rankdata(x_P), scipy.stats.rankdata(y_P))
            found = interval(_pearson(a_P, b_P), _resampled_pearson(a_P, b_P, resample(group_P, bootstrap, seed)))
            out |= {name: found["value"], f"{name}-low": found["low"], f"{name}-high": found["high"]}
    return {**out, "n": len(x_P)}


def _pearson(x_P: np.ndarray, y_P: np.ndarray) -> float:
    x_P, y_P = x_P - x_P.mean(), y_P - y_P.mean()
    return float(x_P @ y_P / np.sqrt((x_P @ x_P) * (y_P @ y_P)))


def _resampled_pearson(x_P: np.ndarray, y_P: np.ndarray, weights: Weights) -> np.ndarray:
    x_P, y_P = (x_P - x_P.mean()) / x_P.std(), (y_P - y_P.mean()) / y_P.std()
    x_R, y_R, xx_R, yy_R, xy_R = weights.means(np.stack([x_P, y_P, x_P * x_P, y_P * y_P, x_P * y_P], 1)).T
    variance_R = (xx_R - x_R**2) * (yy_R - y_R**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance_R > 1e-12, (xy_R - x_R * y_R) / np.sqrt(np.maximum(variance_R, 0)), np.nan)


def calibration(
    predicted_P: np.ndarray, observed_P: np.ndarray, group_P: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Whether predictions mean what they say, where both are finite.

    Args:
      group_P: the dialogue of each value; 95 % intervals resample whole dialogues.

    Returns:
      slope, intercept: of the least-squares line of the observed on the predicted; 1 and 0 are ideal.
      ece: expected calibration error, the mean over `BINS` bins of equally many predictions of |mean observed - mean
        predicted|, in the unit of the values (Guo et al. 2017, eq. 3, for a number in place of a chance). Bins are
        those of the whole sample. Resampling adds the bins' noise a second time, so the percentiles are moved down by
        what the resamples' mean is above the figure.
      ece-chance: what predictions without any error in these bins would show on as many values, by their noise alone.
      Each but the last with `-low` and `-high`. NaN with fewer than three values or where the prediction is constant.
    """
    x_P, y_P, group_P = _checked(predicted_P, observed_P, group_P)
    if len(x_P) < 3 or np.ptp(x_P) == 0:
        names = (f"{name}{end}" for name in ("slope", "intercept", "ece") for end in ("", "-low", "-high"))
        return dict.fromkeys((*names, "ece-chance"), float("nan"))
    weights = resample(group_P, bootstrap, seed)
    centre, error_P = x_P.mean(), y_P - x_P
    a_P = x_P - centre
    x_R, y_R, xx_R, xy_R = weights.means(np.stack([a_P, y_P, a_P * a_P, a_P * y_P], 1)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        slope_R = (xy_R - x_R * y_R) / np.where(xx_R - x_R**2 > 1e-12 * xx_R, xx_R - x_R**2, np.nan)
    slope = float(a_P @ y_P / (a_P @ a_P))
    found = {
        "slope": interval(slope, slope_R),
        "intercept": interval(y_P.mean() - slope * centre, y_R - slope_R * (x_R + centre)),
    }
    bin_PK = np.zeros((len(x_P), min(BINS, len(x_P))))
    for k, members in enumerate(np.array_split(np.argsort(x_P, kind="stable"), bin_PK.shape[1])):
        bin_PK[members, k] = 1.0
    gap_K = error_P @ bin_PK / bin_PK.sum(0)
    ece, total_R = float(np.abs(gap_K) @ bin_PK.mean(0)), weights.sums(np.ones((len(x_P), 1)))[:, 0]
    ece_R = np.abs(weights.sums(bin_PK * error_P[:, None])).sum(1) / total_R
    chance_R = np.abs(weights.sums(bin_PK * (error_P - bin_PK @ gap_K)[:, None])).sum(1) / total_R
    found["ece"] = interval(ece, np.maximum(ece_R - ece_R.mean() + ece, 0.0))
    flat = {
        f"{name}{end}": value[key]
        for name, value in found.items()
        for end, key in (("", "value"), ("-low", "low"), ("-high", "high"))
    }
    return {**flat, "ece-chance": float(chance_R.mean())}


def auc(
    score_P: np.ndarray, label_P: np.ndarray, group_P: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Area under the ROC curve: chance that a positive scores above a negative, ties counting half.

    Args:
      label_P: 1 positive, 0 negative; NaN is left out.
      group_P: the dialogue of each value, resampled for the 95 % interval.

    Returns:
      `{"auc", "auc-low", "auc-high", "positives", "n"}`; NaN (but the counts) without both labels.
    """
    x_P, y_P, group_P = _checked(score_P, label_P, group_P)
    if not np.isin(y_P, (0, 1)).all():
        raise InputError(f"labels hold {y_P[~np.isin(y_P, (0, 1))][0]}, expected 0 and 1")
    counts = {"positives": int(y_P.sum()), "n": len(y_P)}
    if not 0 < counts["positives"] < counts["n"]:
        return {"auc": float("nan"), "auc-low": float("nan"), "auc-high": float("nan"), **counts}
    order_P = np.argsort(x_P, kind="stable")
    x_P, y_P, group_P = x_P[order_P], y_P[order_P], group_P[order_P]
    starts_U = np.flatnonzero(np.r_[True, np.diff(x_P) > 0])
    weights = resample(group_P, bootstrap, seed)
    value = float(_weighted_auc(np.ones((1, len(x_P))), y_P, starts_U)[0])
    resampled = [
        _weighted_auc(weights.counts_RG[r : r + _CHUNK][:, weights.group_P], y_P, starts_U)
        for r in range(0, bootstrap, _CHUNK)
    ]
    found = interval(value, np.concatenate(resampled) if resampled else np.zeros(0))
    return {"auc": found["value"], "auc-low": found["low"], "auc-high": found["high"], **counts}


def _weighted_auc(weight_RP: np.ndarray, label_P: np.ndarray, starts_U: np.ndarray) -> np.ndarray:
    """AUC of values sorted by score, `starts_U` where a new score begins; NaN where one label weighs nothing."""
    positive_RU = np.add.reduceat(weight_RP * label_P, starts_U, axis=1)
    negative_RU = np.add.reduceat(weight_RP * (1 - label_P), starts_U, axis=1)
    below_RU = np.cumsum(negative_RU, 1) - negative_RU
    pairs_R = positive_RU.sum(1) * negative_RU.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive_RU * (below_RU + 0.5 * negative_RU)).sum(1) / pairs_R
