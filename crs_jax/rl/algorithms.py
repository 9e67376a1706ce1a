"""What an algorithm of the PPO stage is, and those there are.

All sample the same replies and score them alike; they differ in how scores become advantages, in what first tokens
learn from, and in where the KL penalty stands. Sources stand in `rl/ppo.py`, `groups.py`, `rankwise.py`, `all_acts.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from crs_jax.models.likelihood import FirstToken
from crs_jax.rl import all_acts, rankwise
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.groups import best_alone, standardised
from crs_jax.rl.ppo import leave_one_out

Relative = Callable[[jax.Array, jax.Array], jax.Array]
"""(scores `[C, G]`, size of their terms) -> what each reply is worth beside the others of its context."""


def clipped_surrogate(first: FirstToken, acts: Acts, beside: Any, clip: float) -> jax.Array:
    """`[C]`: PPO's, in expectation over items."""
    return all_acts.surrogate(first, acts, clip)


def with_lists(first: FirstToken, acts: Acts, place_CLK: jax.Array, clip: float) -> jax.Array:
    """`[C]`: that and, for the places below the first, the lists'."""
    return all_acts.surrogate(first, acts, clip) + rankwise.surrogate(first.item_CN, acts, place_CLK, clip)


def to_the_optimum(first: FirstToken, acts: Acts, target: tuple[jax.Array, jax.Array], clip: float) -> jax.Array:
    """`[C]`: cross-entropy with the optimum of rewards less KL penalties."""
    return all_acts.cross_entropy(first, target)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How scores become updates.

    Attributes:
      relative: advantages of whole replies among those to their context; None: by rewards to come, whitened by part.
      words: words have an advantage of their own, from what follows `<|say|>`; else that of the whole reply.
      replies: learns from sampled replies; else from first tokens alone.
      kl_in_reward, kl_in_loss: where the KL penalty stands.
      first_loss: of first tokens, where they are summed over.
      lists, optimum: what that loss reads beside the advantages: lists of items, or the optimum's probabilities.
    """

    relative: Relative | None = None
    words: bool = True
    replies: bool = True
    kl_in_reward: bool = True
    kl_in_loss: bool = False
    first_loss: Callable[[FirstToken, Acts, Any, float], jax.Array] = clipped_surrogate
    lists: bool = False
    optimum: bool = False

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened; these algorithms can have a value function."""
        return self.relative is None and self.replies


ALGORITHMS = {
    "ppo": Algorithm(),
    "rloo": Algorithm(lambda score_CG, _: leave_one_out(score_CG)),
    "grpo": Algorithm(standardised, kl_in_reward=False, kl_in_loss=True),
    "raft": Algorithm(best_alone, words=False, kl_in_reward=False),
    "rankwise": Algorithm(first_loss=with_lists, lists=True),
    "tilt": Algorithm(replies=False, first_loss=to_the_optimum, optimum=True),
}
