"""Self-checks of PPO's first iterations: what must hold before anything has been learned, or the run stops."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

# A reply's log-probability is a sum over tens of tokens of float32 or bfloat16 numbers.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}


class SelfCheckError(RuntimeError):
    """A self-check found something else than it expected; the message says what, where."""


def check_first(metrics: Mapping[str, float], dtype: str, value: str) -> None:
    """Checks the metrics of iteration 0.

    - ratio 1 on the first minibatch: old log-probs and those under the loss are the same function of the same weights;
    - KL to the reference 0: the policy is the reference;
    - the sampler's log-probs equal the scorer's;
    - rewards and log-probs are finite;
    - the value head starts at zero.
    """
    tolerance = TOLERANCE[dtype]
    _expect("ratio of new to old policy on the first minibatch", 1.0, 1.0 + metrics["ratio_error"], tolerance)
    _expect("largest log-ratio to the reference policy", 0.0, metrics["kl/max"], tolerance)
    _expect("largest gap between sampler and scorer log-probs", 0.0, metrics["sampler_gap"], tolerance)
    _expect("rewards and log-probs finite", 1.0, metrics["rewards_finite"], 0.0)
    _expect(f"explained variance of the fresh {value} value head", 0.0, metrics["explained_variance"], 1e-4)


def check_draws(one: jax.Array, other: jax.Array) -> None:
    """Two samplings of the same contexts, each with a key of its own, must differ in what is read off the replies.

    Raises:
      SelfCheckError: they do not.
    """
    if bool(jnp.array_equal(one, other, equal_nan=True)):
        raise SelfCheckError(
            "self-check before ppo iteration 0: expected two keys to draw different replies to the same contexts, "
            f"found the same {len(one)} replies; the sampler does not use its key"
        )


def check_noise(before: float, now: float) -> None:
    """Two iterations must not draw from the same key."""
    if before == now:
        raise SelfCheckError(
            "self-check at ppo iteration 1: expected a fresh sampling key, found that of iteration 0; "
            "the sampler repeats its noise"
        )


def _expect(what: str, expected: float, found: float, tolerance: float) -> None:
    if not abs(found - expected) <= tolerance:
        raise SelfCheckError(
            f"self-check at ppo iteration 0: {what}: expected {expected:g} within {tolerance:g}, found {found:g}. "
            "This is a fault of the program, not of the data; --config.ppo.checks=false goes on without the checks"
        )
