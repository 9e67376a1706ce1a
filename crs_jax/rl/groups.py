"""Advantages from the other replies to the same context, without a value function: RLOO, GRPO and RAFT.

Sources: Ahmadian et al. 2024 (RLOO, arXiv 2402.14740), Shao et al. 2024 (GRPO, arXiv 2402.03300), Dong et al. 2023
(RAFT, arXiv 2304.06767: supervised learning of the best of n). RLOO and GRPO give all tokens of an answer one
advantage; here the act's tokens get that of the whole reply and the words that of what follows `<|say|>`, since what
was proposed is no merit of the words. Axes: B replies, R reply tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.rl.ppo import rounding
from crs_jax.rl.scoring import TokenMasks


def standardised(score_CG: jax.Array, size_CG: jax.Array | None = None, epsilon: float = 1e-6) -> jax.Array:
    """Scores less their context's mean, over its standard deviation (Shao et al. 2024, 4.1.2); 0 where all are equal.

    It weighs contexts alike, however little their replies differ: the optimum is no longer that of the rewards' sum.
    So rounding must not pass for a difference: scores of one context that lie within `rounding` of the largest
    `size_CG` (None: the scores' own) are equal.
    """
    beside_CG = score_CG - score_CG[:, :1]
    centred_CG = beside_CG - beside_CG.mean(1, keepdims=True)
    spread_C1 = score_CG.max(1, keepdims=True) - score_CG.min(1, keepdims=True)
    standard_CG = centred_CG / (jnp.sqrt(jnp.square(centred_CG).mean(1, keepdims=True)) + epsilon)
    return jnp.where(spread_C1 <= _rounding(score_CG, size_CG), 0.0, standard_CG)


def best_alone(score_CG: jax.Array, size_CG: jax.Array | None = None) -> jax.Array:
    """G for the best reply of each context, the first of those that are equal, 0 for the others: a mean of 1."""
    G = score_CG.shape[1]
    best_CG = score_CG >= score_CG.max(1, keepdims=True) - _rounding(score_CG, size_CG)
    return G * jax.nn.one_hot(best_CG.argmax(1), G, dtype=score_CG.dtype)


def _rounding(score_CG: jax.Array, size_CG: jax.Array | None) -> jax.Array:
    """`rounding` of each context's largest size, `[C, 1]`."""
    return rounding((jnp.abs(score_CG) if size_CG is None else size_CG).max(1, keepdims=True))


def group_advantages(
    reward_BR: jax.Array,
    masks: TokenMasks,
    group: int,
    relative: Callable[[jax.Array, jax.Array], jax.Array],
    words: bool = True,
    term_B: jax.Array | float = 0.0,
) -> jax.Array:
    """Advantages `[B, R]`, 0 on padding.

    Args:
      reward_BR: rewards of tokens, KL penalties included where they belong in the reward (RLOO).
      split: the replies' parts.
      group: replies to a context, next to one another; at least 2.
      relative: (scores, size of their terms) `[C, G]` -> `[C, G]`: less the mean of the others (RLOO), `standardised`
        (GRPO) or `best_alone` (RAFT).
      words: the words' advantage is that of what they earn; else it is that of the whole reply (RAFT).
      term_B: size of the terms that a reply's rewards were made from, where these are larger than the rewards: sums
        round in units of their largest term, so that is what tells equal replies from unequal ones.
    """
    real_BR = masks.act_BR | masks.word_BR
    size_CG = (jnp.where(real_BR, jnp.abs(reward_BR), 0.0).sum(-1) + term_B).reshape(-1, group)

    def of(part_BR: jax.Array) -> jax.Array:
        return relative(jnp.where(part_BR, reward_BR, 0.0).sum(-1).reshape(-1, group), size_CG).reshape(-1)

    whole_B = of(real_BR)
    words_B = of(masks.word_BR) if words else whole_B
    advantage_BR = jnp.where(masks.act_BR, whole_B[:, None], words_B[:, None])
    return lax.stop_gradient(jnp.where(real_BR, advantage_BR, 0.0))
