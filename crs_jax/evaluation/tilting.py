"""The optimum of a reward at a KL, in closed form: `ref exp(reward / beta)` over its norm. Pure NumPy, float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STEEPEST = 1e3  # largest 1 / beta that is tried


class Tilted(NamedTuple):
    """Of each context, leading axis I.

    Attributes:
      logp_IA: log-probabilities of the acts under the tilted policy.
      gain_IA: what was added to their logits, 1 / beta times the reward less its mean under the reference.
      kl_I: KL to the reference, nats.
      reward_I: expected reward; acts that were not scored count as the reference's mean.
    """

    logp_IA: np.ndarray
    gain_IA: np.ndarray
    kl_I: np.ndarray
    reward_I: np.ndarray


def expected(p_IA: np.ndarray, reward_IA: np.ndarray, mean_I: np.ndarray) -> np.ndarray:
    """Expected reward of each context; what mass the acts leave earns `mean_I`."""
    return (p_IA * reward_IA).sum(1) + np.maximum(1.0 - p_IA.sum(1), 0.0) * mean_I


def tilt(logp_IA: np.ndarray, reward_IA: np.ndarray, slope: float) -> Tilted:
    """The reference tilted by `slope` = 1 / beta times the reward, over acts that may leave some mass unscored.

    Args:
      logp_IA: log-probabilities of the scored acts under the reference; they sum to 1 at most.
      reward_IA: their rewards.
      slope: at least 0.
    """
    p_IA = np.exp(logp_IA)
    mass_I = np.minimum(p_IA.sum(1), 1.0)
    mean_I = (p_IA * reward_IA).sum(1) / mass_I
    gain_IA = slope * (reward_IA - mean_I[:, None])
    top_I = np.maximum(gain_IA.max(1), 0.0)
    norm_I = top_I + np.log((1.0 - mass_I) * np.exp(-top_I) + (p_IA * np.exp(gain_IA - top_I[:, None])).sum(1))
    logq_IA = logp_IA + gain_IA - norm_I[:, None]
    q_IA = np.exp(logq_IA)
    kl_I = (q_IA * gain_IA).sum(1) - norm_I
    return Tilted(logq_IA, gain_IA, kl_I, expected(q_IA, reward_IA, mean_I))


def slope_of(logp_IA: np.ndarray, reward_IA: np.ndarray, kl: float) -> float:
    """The slope whose mean KL is `kl` (it grows with the slope), at most `STEEPEST`; 0 for a `kl` of 0 or less."""
    low, high = 0.0, STEEPEST
    if kl <= 0 or tilt(logp_IA, reward_IA, high).kl_I.mean() < kl:
        return low if kl <= 0 else high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt(logp_IA, reward_IA, middle).kl_I.mean() < kl else (low, middle)
    return (low + high) / 2
