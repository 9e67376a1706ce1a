"""The trust region of an iteration: how far its updates moved the policy, and back along the way where that is too far.

As in TRPO's line search (Schulman et al. 2015, arXiv 1502.05477, appendix C): the updates' sum is shortened until the
KL of the old policy to the new one is within the bound. KL grows with the square of a short way, so that a few steps
do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.training.state import select

MOST_STEPS = 8


def next_pace(pace: jax.Array, share: jax.Array) -> jax.Array:
    """What the next iteration's rate is multiplied by: slower where the way was too far, else back towards 1.

    So updates become as long as the bound allows, instead of long ones that overshoot and are shortened.
    """
    return jnp.minimum(pace * jnp.where(share < 1.0, jnp.maximum(share, 0.5), 1.2), 1.0)


class Moved(NamedTuple):
    """KL(old || new) of acts and of words, nats a reply."""

    act: jax.Array
    word: jax.Array


def shortened(measure: Callable[[Any], Moved], old: Any, new: Any, bound: float) -> tuple[Any, Moved, jax.Array]:
    """`old + share (new - old)`, leaf by leaf, where both KLs are at most `bound`; inside jit.

    A KL that is not a number is too much. Where `MOST_STEPS` do not suffice the old parameters stay.

    Returns:
      The parameters, their KLs, and the share of the way that is kept, 1 where nothing is too far and 0 where all is.
    """

    def between(share: jax.Array) -> Any:
        return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), old, new)

    def largest(moved: Moved) -> jax.Array:
        return jnp.maximum(moved.act, moved.word)

    def too_far(carry: tuple[Any, Moved, jax.Array, jax.Array]) -> jax.Array:
        _, moved, _, steps = carry
        return ~(largest(moved) <= bound) & (steps < MOST_STEPS)

    def step(carry: tuple[Any, Moved, jax.Array, jax.Array]) -> tuple[Any, Moved, jax.Array, jax.Array]:
        _, moved, share, steps = carry
        kl = largest(moved)
        factor = jnp.where(jnp.isfinite(kl), 0.95 * jnp.sqrt(bound / kl), 0.1)
        share = share * jnp.clip(factor, 0.1, 0.9)
        params = between(share)
        return params, measure(params), share, steps + 1

    one = jnp.float32(1)
    params, moved, share, _ = lax.while_loop(too_far, step, (new, measure(new), one, jnp.int32(0)))
    held = largest(moved) <= bound
    nowhere = jax.tree.map(jnp.zeros_like, (moved, share))
    return select(held, params, old), *select(held, (moved, share), nowhere)
