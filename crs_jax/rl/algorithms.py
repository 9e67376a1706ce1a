"""The registry of PPO's algorithms: what each is, in one entry.

All sample the same replies and score them alike; they differ in how scores become advantages, in what first tokens
learn from, and in where the KL penalty stands. A function of an entry imports what it needs when it is called, so that
the config can ask the registry without waiting for JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crs_jax.runtime.registry import Registry

if TYPE_CHECKING:
    import jax

    from crs_jax.models.likelihood import FirstToken
    from crs_jax.rl.all_acts import Acts


def clipped_surrogate(first: FirstToken, acts: Acts, beside: Any, clip: float) -> jax.Array:
    """`[C]`: PPO's, in expectation over items."""
    from crs_jax.rl import all_acts

    return all_acts.surrogate(first, acts, clip)


def with_lists(first: FirstToken, acts: Acts, place_CLK: jax.Array, clip: float) -> jax.Array:
    """`[C]`: that and, for the places below the first, the lists'."""
    from crs_jax.rl import all_acts, plackett_luce

    return all_acts.surrogate(first, acts, clip) + plackett_luce.surrogate(first.item_CN, acts, place_CLK, clip)


def to_the_optimum(first: FirstToken, acts: Acts, target: tuple[jax.Array, jax.Array], clip: float) -> jax.Array:
    """`[C]`: cross-entropy with the optimum of rewards less KL penalties."""
    from crs_jax.rl import all_acts

    return all_acts.cross_entropy(first, target)


def leave_one_out(score_CG: jax.Array, size_CG: jax.Array) -> jax.Array:
    """`[C, G]`: less the mean of the others."""
    from crs_jax.rl import ppo

    return ppo.leave_one_out(score_CG)


def standardised(score_CG: jax.Array, size_CG: jax.Array) -> jax.Array:
    """`[C, G]`: less the mean, over the standard deviation."""
    from crs_jax.rl import groups

    return groups.standardised(score_CG, size_CG)


def best_alone(score_CG: jax.Array, size_CG: jax.Array) -> jax.Array:
    """`[C, G]`: all for the best."""
    from crs_jax.rl import groups

    return groups.best_alone(score_CG, size_CG)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How scores become updates.

    Attributes:
      relative: (scores, size of their terms) `[C, G]` -> advantages of whole replies among those to their context;
        None: by rewards to come, whitened by part, with or without a value function.
      words: words have an advantage of their own, from what follows `<|say|>`; else that of the whole reply.
      replies: learns from sampled replies; else from first tokens alone.
      kl_in_reward, kl_in_loss: where the KL penalty stands.
      sums: may learn first tokens by a sum over items (`config.ppo.all_acts`).
      first_loss: of first tokens, where they are summed over.
      lists, optimum: what that loss reads beside the advantages: lists of items, or the optimum's probabilities.
    """

    relative: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    words: bool = True
    replies: bool = True
    kl_in_reward: bool = True
    kl_in_loss: bool = False
    sums: bool = True
    first_loss: Callable[[FirstToken, Acts, Any, float], jax.Array] = clipped_surrogate
    lists: bool = False
    optimum: bool = False

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened; these algorithms can have a value function."""
        return self.relative is None and self.replies


ALGORITHMS = Registry(
    "algorithm",
    {
        "ppo": Algorithm(),
        "rankwise": Algorithm(first_loss=with_lists, lists=True),
        "rloo": Algorithm(leave_one_out),
        "grpo": Algorithm(standardised, kl_in_reward=False, kl_in_loss=True, sums=False),
        "raft": Algorithm(best_alone, words=False, kl_in_reward=False, sums=False),
        "tilt": Algorithm(replies=False, first_loss=to_the_optimum, optimum=True),
    },
)
