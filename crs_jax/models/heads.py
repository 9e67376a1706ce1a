"""Scalar heads on hidden states: the value function and the reward model's signals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models.decisions import normalised
from crs_jax.models.match_features import MATCH_FEATURES
from crs_jax.signals.registry import SIGNALS


class ValueHead(nnx.Module):
    """Return-to-go from a normalised state; starts at zero, so that the first advantages are the rewards themselves."""

    def __init__(self, width: int):
        self.kernel = nnx.Param(jnp.zeros(width))
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """`[..., D]` to `[...]`, float32."""
        return hidden.astype(jnp.float32) @ self.kernel[...] + self.bias[...]


class SignalHeads(nnx.Module):
    """One linear head a signal, on a normalised hidden state and on match features (`models/match_features.py`).

    All start at zero; the reward stage starts those of the fit, and the biases, at least squares, so that the trunk
    learns what is left. Outputs are in units of the standardised labels; the reward's own normaliser (`rl/reward.py`)
    puts them at mean 0 and standard deviation 1 on reference samples.
    """

    def __init__(self, width: int):
        self.kernel = nnx.Param(jnp.zeros((width, len(SIGNALS))))
        self.feature_kernel = nnx.Param(jnp.zeros((len(MATCH_FEATURES), len(SIGNALS))))
        self.bias = nnx.Param(jnp.zeros(len(SIGNALS)))

    def __call__(self, hidden: jax.Array, features: jax.Array) -> jax.Array:
        """`[..., D]` and `[..., len(MATCH_FEATURES)]` to `[..., S]` in the order of `SIGNALS`, float32."""
        state = normalised(hidden.astype(jnp.float32))
        return state @ self.kernel[...] + features @ self.feature_kernel[...] + self.bias[...]
