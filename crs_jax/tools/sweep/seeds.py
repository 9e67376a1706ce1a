"""What several seeds say of a measure: mean and interval of each cell, and its paired difference to the reference."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from crs_jax.tools.report.figures import Figure

LEVEL = 0.95
Found = Mapping[str, Mapping[int, Mapping[str, Figure]]]  # by cell, seed and measure


@dataclasses.dataclass(frozen=True)
class Entry:
    """A measure of a cell, and its difference to the reference cell; None for the reference itself."""

    value: Figure
    difference: Figure | None


def mean_over_seeds(figures: Sequence[Figure]) -> Figure:
    """The mean with its 95 % t interval over seeds; of one seed, the figure with what interval its run gives.

    NaN where a seed lacks the measure: a mean over the others would be of other runs than its neighbours'.
    """
    if len(figures) == 1:
        return figures[0]
    return _of_mean(np.array([figure.value for figure in figures], np.float64))


def paired_difference(figures: Sequence[Figure], reference: Sequence[Figure]) -> Figure:
    """Mean difference over the same seeds, with its 95 % t interval and the p-value of the two-sided paired t-test.

    Of one seed the bare difference. Where all differences are the same number there is no spread to test by: the
    interval is that number, and there is no p-value.
    """
    values, others = (np.array([figure.value for figure in part], np.float64) for part in (figures, reference))
    if len(values) == 1:
        return Figure(float(values[0] - others[0]))
    mean = _of_mean(values - others)
    if not math.isfinite(mean.value) or np.ptp(values - others) == 0:
        return mean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nearly equal differences
        p = float(scipy.stats.ttest_rel(values, others).pvalue)
    return dataclasses.replace(mean, p=p if math.isfinite(p) else None)


def summary(found: Found, measures: Sequence[str], reference: str) -> dict[str, dict[str, Entry]]:
    """By cell and measure."""
    of = {cell: {name: [row[name] for row in seeds.values()] for name in measures} for cell, seeds in found.items()}
    return {
        cell: {
            name: Entry(
                mean_over_seeds(figures),
                None if cell == reference else paired_difference(figures, of[reference][name]),
            )
            for name, figures in named.items()
        }
        for cell, named in of.items()
    }


def _of_mean(values: np.ndarray) -> Figure:
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    if not math.isfinite(mean):
        return Figure(math.nan)
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Figure(mean, mean - reach, mean + reach)
