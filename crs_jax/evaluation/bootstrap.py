"""Bootstrap over groups: whole dialogues are resampled, since the messages of one are not independent."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """R resamples of G groups.

    Attributes:
      counts_RG: how often each group was drawn; each row sums to G.
      group_P: int in 0..G-1, the group of each value.
    """

    counts_RG: np.ndarray
    group_P: np.ndarray

    def sums(self, values_PM: np.ndarray) -> np.ndarray:
        """Sum of each column in each resample, [R, M]."""
        by_group_GM = np.zeros((self.counts_RG.shape[1], values_PM.shape[1]))
        np.add.at(by_group_GM, self.group_P, values_PM)
        return self.counts_RG @ by_group_GM

    def means(self, values_PM: np.ndarray) -> np.ndarray:
        """Mean over values (not over groups) of each column in each resample, [R, M]."""
        return self.sums(values_PM) / self.sums(np.ones((len(values_PM), 1)))


def resample(group_P: np.ndarray, resamples: int, seed: int) -> Weights:
    """Draws as many groups as there are, with replacement, `resamples` times. At least one value is needed."""
    groups, number_P = np.unique(group_P, return_inverse=True)
    return Weights(_counts(len(groups), resamples, seed), number_P.reshape(-1))


@functools.lru_cache(maxsize=8)
def _counts(groups: int, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 20_102])
    return rng.multinomial(groups, np.full(groups, 1.0 / groups), size=resamples).astype(np.float64)


def interval(value: float, resampled_R: np.ndarray) -> dict[str, float]:
    """`{"value", "low", "high"}`: the 2.5th and 97.5th percentile of what the resamples gave (NaN ones left out)."""
    finite_R = resampled_R[np.isfinite(resampled_R)]
    if not len(finite_R):
        return {"value": float(value), "low": float("nan"), "high": float("nan")}
    low, high = np.percentile(finite_R, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}
