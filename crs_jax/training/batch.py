"""What an iteration of PPO works on, from sampled replies to an update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from crs_jax.models.likelihood import FirstToken
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.reward import Scores
from crs_jax.rl.sampling import Replies
from crs_jax.rl.scoring import TokenLikelihood, TokenMasks
from crs_jax.training.episodes import Answer


class RolloutBatch(NamedTuple):
    """Replies on their way to an update: B = C x G rows to C contexts.

    `rollout` fills the first three, `score` the rest but `reward_BR`, which `advantages` does.

    Attributes:
      contexts: C rows.
      replies: what was said.
      alive_B: False where the seeker had left before; nothing was said there, and all masks are False.
      old, reference: likelihoods under the policy that sampled and under the SFT policy.
      first: the policy's first tokens in the contexts.
      value_BR: of the value function.
      masks: which of their tokens are of the slate, and which words.
      scores: their rewards.
      k1_BR, decision_BR: KL to the SFT policy of each token, and the part of it that is of whether to propose.
      finite_B: whether all signals that exist are finite.
      reward_BR: what each token is paid.
    """

    contexts: Contexts
    replies: Replies
    alive_B: jax.Array
    old: TokenLikelihood | Any = None
    reference: TokenLikelihood | Any = None
    first: FirstToken | Any = None
    value_BR: jax.Array | Any = None
    masks: TokenMasks | Any = None
    scores: Scores | Any = None
    k1_BR: jax.Array | Any = None
    decision_BR: jax.Array | Any = None
    finite_B: jax.Array | Any = None
    reward_BR: jax.Array | Any = None


class Candidates(NamedTuple):
    """Items that might be proposed first, alternatives to one another, in C contexts, more than are replied to.

    They need no sampled words: one prefill gives the hidden state that has read `<|rec|>`, and the reward model says
    what each of the likeliest items would earn. So the expectation is taken over hundreds of contexts for the price of
    a few sampled replies. `rollout` fills all but the last three, in parts that are worked on one after the other,
    `[parts, contexts of one, ...]`; `score` does these, and then C is the leading axis.

    Attributes:
      contexts: in parts.
      hidden_CD: states that have read `<|rec|>`.
      row_CA, weight_CA: the items (`all_acts.choose`).
      mass_CA: what each stands for in a sum over all items: 1, or for one that was drawn more.
      first: log-probabilities of these items under the policy that samples.
      reference: under the SFT policy.
      score_CA: rewards of the acts with one of the items each.
      empty_C: of the act without any.
    """

    contexts: Contexts | None
    hidden_CD: jax.Array
    row_CA: jax.Array
    weight_CA: jax.Array
    mass_CA: jax.Array
    first: FirstToken
    reference: FirstToken | Any = None
    score_CA: jax.Array | Any = None
    empty_C: jax.Array | Any = None


class Rollout(NamedTuple):
    """An iteration's data.

    Attributes:
      contexts: all of them.
      candidates: for their first items; None where first items learn from sampled replies only.
      turns: replies of the first turn, to `config.ppo.contexts` of the contexts, and where there are more turns those
        of all later ones, a leading axis of turns before them.
      answers: of seekers before the later turns.
    """

    contexts: Contexts
    candidates: Candidates | None
    turns: tuple[RolloutBatch, ...]
    answers: Answer | None = None
