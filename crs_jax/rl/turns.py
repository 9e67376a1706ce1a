"""Episodes of several turns: advantages over all their replies, and who is still talking. Pure functions of arrays.

An episode is the concatenation of the recommender's replies. What the seeker says between two of them is the
environment's: no step, no reward, no loss. Axes: U turns, B episodes, R reply tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.rl.ppo import require_float


def gae_over_turns(
    reward_UBR: jax.Array,
    value_UBR: jax.Array,
    mask_UBR: jax.Array,
    discount: float,
    lam: float,
    turn_discount: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`rl/ppo.py`'s `gae` of the concatenated real tokens of each episode's replies.

    The value after the last token of a reply is that of the first token of the next, discounted by `turn_discount`
    besides; after the last reply it is 0. Real tokens are a prefix of a reply; a reply without any is no turn.

    Returns:
      Advantages and returns `[U, B, R]`, 0 on padding.
    """
    require_float(reward_UBR=reward_UBR, value_UBR=value_UBR)
    U, B, R = reward_UBR.shape
    last_UBR = mask_UBR & ~jnp.pad(mask_UBR, ((0, 0), (0, 0), (0, 1)))[..., 1:]

    def back(carry, now):
        following_B, next_B = carry
        reward_B, value_B, mask_B, last_B = now
        step_B = discount * jnp.where(last_B, turn_discount, 1.0)
        delta_B = reward_B + step_B * next_B - value_B
        advantage_B = jnp.where(mask_B, delta_B + step_B * lam * following_B, 0.0)
        carry = (jnp.where(mask_B, advantage_B, following_B), jnp.where(mask_B, value_B, next_B))
        return carry, advantage_B

    def in_order(a_UBR: jax.Array) -> jax.Array:
        return jnp.swapaxes(a_UBR, 1, 2).reshape(U * R, B)

    steps = tuple(in_order(a) for a in (reward_UBR, value_UBR, mask_UBR, last_UBR))
    zeros = jnp.zeros(B, reward_UBR.dtype)
    _, advantage_TB = lax.scan(back, (zeros, zeros), steps, reverse=True)
    advantage_UBR = jnp.swapaxes(advantage_TB.reshape(U, R, B), 1, 2)
    return advantage_UBR, jnp.where(mask_UBR, advantage_UBR + value_UBR, 0.0)


def permutation(key: jax.Array, there_B: jax.Array) -> jax.Array:
    """A random order `[B]` of the rows that are there among themselves; the others keep their places."""
    drawn_B = jnp.where(there_B, jax.random.uniform(key, there_B.shape), 2.0)
    places_B = jnp.argsort(~there_B, stable=True)  # those that are there first
    return jnp.arange(len(there_B)).at[places_B].set(jnp.where(there_B[places_B], jnp.argsort(drawn_B), places_B))
