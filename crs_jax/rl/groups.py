"""Advantages from the other replies to the same context, without a value function: RLOO, GRPO and RAFT.

Sources: Ahmadian et al. 2024 (RLOO, arXiv 2402.14740), Shao et al. 2024 (GRPO, arXiv 2402.03300), Dong et al. 2023
(RAFT, arXiv 2304.06767: supervised learning of the best of n). RLOO and GRPO give all tokens of an answer one
advantage; here the act's tokens get that of the whole reply and the words that of what follows `<|say|>`, since what
was proposed is no merit of the words. Axes: B replies, R reply tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.rl.ppo import leave_one_out
from crs_jax.rl.scoring import Parts

ALGORITHMS = ("rloo", "grpo", "raft")


def standardised(score_CG: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Scores less their context's mean, over its standard deviation (Shao et al. 2024, 4.1.2); 0 where all are equal.

    It weighs contexts alike, however little their replies differ: the optimum is no longer that of the rewards' sum.
    """
    centred_CG = score_CG - score_CG.mean(1, keepdims=True)
    return centred_CG / (jnp.sqrt(jnp.square(centred_CG).mean(1, keepdims=True)) + epsilon)


def best_alone(score_CG: jax.Array) -> jax.Array:
    """G for the best reply of each context, the first of those that are equal, 0 for the others: a mean of 1."""
    G = score_CG.shape[1]
    return G * jax.nn.one_hot(score_CG.argmax(1), G, dtype=score_CG.dtype)


def group_advantages(reward_BR: jax.Array, split: Parts, group: int, algorithm: str) -> jax.Array:
    """Advantages `[B, R]`, 0 on padding.

    Args:
      reward_BR: rewards of tokens, KL penalties included where they belong in the reward (RLOO).
      split: the replies' parts.
      group: replies to a context, next to one another; at least 2.
      algorithm: `rloo` (less the mean of the others), `grpo` (`standardised`) or `raft` (`best_alone`, of the whole
        reply for all of its tokens).
    """
    relative = {"rloo": leave_one_out, "grpo": standardised, "raft": best_alone}[algorithm]
    whole_B = jnp.where(split.act_BR | split.word_BR, reward_BR, 0.0).sum(-1)
    words_B = jnp.where(split.word_BR, reward_BR, 0.0).sum(-1)
    whole_B, words_B = (relative(a.reshape(-1, group)).reshape(-1) for a in (whole_B, words_B))
    words_B = whole_B if algorithm == "raft" else words_B
    advantage_BR = jnp.where(split.act_BR, whole_B[:, None], words_B[:, None])
    return lax.stop_gradient(jnp.where(split.act_BR | split.word_BR, advantage_BR, 0.0))
