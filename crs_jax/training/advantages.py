"""The third function of an iteration: scores become rewards of tokens, and these advantages.

Rewards are paid where `rl/reward.py` says, less the k1 KL penalty of each token; acts and words have their own KL
coefficients and whitening, since a reply has one or two act tokens and dozens of words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crs_jax.features.context import ContextFeatures
from crs_jax.rl import all_acts, plackett_luce, ppo
from crs_jax.rl.algorithms import Algorithm
from crs_jax.rl.all_acts import Acts, Known
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.groups import group_advantages
from crs_jax.rl.reward import Scores
from crs_jax.rl.scoring import TokenMasks
from crs_jax.training.batch import Candidates, Rollout, RolloutBatch
from crs_jax.training.rollout import replied_to
from crs_jax.training.turns import advantages as over_turns
from crs_jax.training.turns import as_rows, by_episode, joined


class Experience(NamedTuple):
    """What updates learn from sampled replies; leading axis C contexts, then G replies.

    Of later turns leading axes are C, then rows with a context each, then one reply (`turns.by_episode`).
    """

    contexts: Contexts
    tokens_CGR: jax.Array
    reply_mask_CGR: jax.Array
    act_CGR: jax.Array
    logp_CGR: jax.Array
    reference_CGR: jax.Array
    value_CGR: jax.Array
    advantage_CGR: jax.Array
    return_CGR: jax.Array


class FirstItems(NamedTuple):
    """What updates learn first tokens from; leading axis C contexts.

    Attributes:
      features: of the contexts.
      hidden_CD: states that have read `<|rec|>`, as they were when the iteration began: the query, the items and the
        decisions learn from them, the trunk learns from replies.
      acts: the items and whether to propose, with what each earns beyond the policy's mean.
      beside: what the algorithm's loss reads besides: lists `place_CLK`, or the optimum's probabilities.
    """

    features: ContextFeatures
    hidden_CD: jax.Array
    acts: Acts
    beside: Any


class Advantages(NamedTuple):
    """What an iteration learns from.

    Attributes:
      first: first items, None where first tokens are sampled alone.
      replies: of the first turn, and of later ones where there are any.
      rows: all replies, with what they were paid.
      return_BR: of these, what the value function is to learn.
      known: of first items.
    """

    first: FirstItems | None
    replies: tuple[Experience, ...]
    rows: RolloutBatch
    return_BR: jax.Array
    known: Known | None


class Coefficients(NamedTuple):
    """Of KL penalties: of which item, of whether to propose, of words."""

    act: jax.Array
    decision: jax.Array
    word: jax.Array


def has_critic(algorithm: Algorithm, config: ConfigDict) -> bool:
    """Whether a value function is the baseline; else the mean of a context's other replies is."""
    return algorithm.whitens and not config.ppo.group_baseline


def token_rewards(
    scores: Scores,
    masks: TokenMasks,
    kl_BR: jax.Array,
    decision_BR: jax.Array,
    act_kl: jax.Array,
    decision_kl: jax.Array | float,
    word_kl: jax.Array,
    penalty: float,
) -> jax.Array:
    """Rewards `[B, R]`: scores where they fall, less the KL penalty of each token and that of a missing end.

    `decision_BR` is the part of `kl_BR` that is of whether another item is proposed.
    """
    word_B = scores.total_B - scores.act_B - penalty * ~masks.ended_B
    placed_BR = ppo.place_rewards(scores.act_B, word_B, masks.say_BR, masks.last_BR)
    act_BR = act_kl * (kl_BR - decision_BR) + decision_kl * decision_BR
    return placed_BR - act_BR * masks.act_BR - word_kl * kl_BR * masks.word_BR


def make_advantages(config: ConfigDict, algorithm: Algorithm, beyond: bool) -> Callable:
    """(scored rollout, KL coefficients, the rollout's key) -> `Advantages`; inside jit.

    Args:
      config: the whole config.
      algorithm: how scores become advantages.
      beyond: later turns or a user's own reward add something that the reward of the items does not hold. With
        candidates for first items the items of sampled replies learn from that alone, and from nothing where there is
        no such thing.
    """
    c = config.ppo
    first_items = make_first_items(config, algorithm)
    credit = beyond_known if c.all_acts and beyond else as_scored
    baseline = less_the_others if algorithm.whitens and c.group_baseline else lambda scores, group: scores
    estimate = over_turns if has_critic(algorithm, config) else by_return
    relative = make_relative(config, algorithm)
    sampled_acts = not c.all_acts or beyond

    def advantages(rollout: Rollout, kl: Coefficients, key: jax.Array) -> Advantages:
        paid_kl = kl if algorithm.kl_in_reward else Coefficients(*(jnp.float32(0),) * 3)
        first, known = first_items(rollout, kl, key)
        begun, *later = rollout.turns
        credited = credit(begun, first, known, c.contexts)
        turns = [paid(begun, baseline(credited[0], c.group), *credited[1:], paid_kl, c.missing_end_penalty)]
        turns += [
            paid(t, t.scores, t.k1_BR, t.decision_BR, paid_kl, c.missing_end_penalty) for t in map(as_rows, later)
        ]
        rows = joined(turns)
        advantage_BR, return_BR = estimate(rows, c)
        advantage_BR, first = relative(advantage_BR, rows, first)
        if not sampled_acts:
            advantage_BR = jnp.where(rows.masks.act_BR, 0.0, advantage_BR)
        replies, start = [], 0
        for turn in turns:
            count = len(turn.reward_BR)
            part = slice(start, start + count)
            replies.append(experience(turn.contexts, rows, advantage_BR, return_BR, part))
            start += count
        replies[1:] = [by_episode(one, c.turns, c.contexts) for one in replies[1:]]
        return Advantages(first, tuple(replies), rows, return_BR, known)

    return advantages


def as_scored(turn: RolloutBatch, *_: Any) -> tuple[Scores, jax.Array, jax.Array]:
    """Scores and KL of tokens as they are."""
    return turn.scores, turn.k1_BR, turn.decision_BR


def beyond_known(
    turn: RolloutBatch, first: FirstItems, known: Known, contexts: int
) -> tuple[Scores, jax.Array, jax.Array]:
    """Scores less what is known of the first item, and the KL that the sum over first items has not paid."""
    B = len(turn.k1_BR)
    row_CG = turn.masks.items_BM[:, 0].reshape(contexts, -1)
    acts, known = replied_to((first.acts, known), contexts)
    known_CG, listed_CG = all_acts.of_sampled(acts, known, row_CG)
    known_B, item_B = known_CG.reshape(B), turn.k1_BR[:, 0] - turn.decision_BR[:, 0]
    scores = turn.scores._replace(act_B=turn.scores.act_B - known_B, total_B=turn.scores.total_B - known_B)
    k1_BR = turn.k1_BR.at[:, 0].set(jnp.where(listed_CG.reshape(B), 0.0, item_B))
    return scores, k1_BR, turn.decision_BR.at[:, 0].set(0.0)


def less_the_others(scores: Scores, group: int) -> Scores:
    """Scores less the mean of the context's other replies."""
    act_B, total_B = (ppo.leave_one_out(a.reshape(-1, group)).reshape(-1) for a in scores[:2])
    return scores._replace(act_B=act_B, total_B=total_B)


def paid(
    turn: RolloutBatch, scores: Scores, k1_BR: jax.Array, decision_BR: jax.Array, kl: Coefficients, penalty: float
) -> RolloutBatch:
    """The replies with the rewards of their tokens."""
    return turn._replace(reward_BR=token_rewards(scores, turn.masks, k1_BR, decision_BR, *kl, penalty))


def by_return(rows: RolloutBatch, c: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Rewards-to-go, as advantages and as returns."""
    return ppo.gae(rows.reward_BR, jnp.zeros_like(rows.reward_BR), rows.replies.mask_BR, c.discount, 1.0)


def make_relative(config: ConfigDict, algorithm: Algorithm) -> Callable:
    """(advantages `[B, R]`, all replies, first items) -> both, as the algorithm learns from them; inside jit."""
    c = config.ppo

    def whitened(advantage_BR: jax.Array, rows: RolloutBatch, first: None) -> tuple[jax.Array, None]:
        act_BR, word_BR = rows.masks.act_BR, rows.masks.word_BR
        return ppo.whiten(advantage_BR, act_BR) + ppo.whiten(advantage_BR, word_BR), first

    def whitened_beside_items(
        advantage_BR: jax.Array, rows: RolloutBatch, first: FirstItems
    ) -> tuple[jax.Array, FirstItems]:
        scale, act_BR = jnp.sqrt(all_acts.variance(first.acts) + 1e-8), rows.masks.act_BR
        of_act = jnp.where(act_BR, ppo.less_mean(advantage_BR, act_BR) / scale, 0.0)
        return of_act + ppo.whiten(advantage_BR, rows.masks.word_BR), first._replace(acts=scaled(first.acts, scale))

    def none(advantage_BR: jax.Array, rows: RolloutBatch, first: Any) -> tuple[jax.Array, Any]:
        return jnp.zeros_like(advantage_BR), first

    def in_groups(advantage_BR: jax.Array, rows: RolloutBatch, first: Any) -> tuple[jax.Array, Any]:
        assert algorithm.relative is not None
        scores = rows.scores
        term_B = jnp.abs(scores.act_B) + jnp.abs(scores.total_B) + c.missing_end_penalty * ~rows.masks.ended_B
        return group_advantages(rows.reward_BR, rows.masks, c.group, algorithm.relative, algorithm.words, term_B), first

    if not algorithm.replies:
        return none
    if algorithm.relative is not None:
        return in_groups
    return whitened_beside_items if c.all_acts else whitened


def scaled(acts: Acts, scale: jax.Array) -> Acts:
    """With advantages over `scale`."""
    return acts._replace(advantage_CA=acts.advantage_CA / scale, advantage_C2=acts.advantage_C2 / scale)


def make_first_items(config: ConfigDict, algorithm: Algorithm) -> Callable:
    """(rollout, KL coefficients, key) -> (`FirstItems`, `Known`), None twice without sums over items; inside jit."""
    c = config.ppo

    def lists(candidates: Candidates, acts: Acts, kl: Coefficients, key: jax.Array) -> Any:
        return plackett_luce.draw(key, acts.logp_CA, c.lists, c.list_items)

    def optimum(candidates: Candidates, acts: Acts, kl: Coefficients, key: jax.Array) -> Any:
        return all_acts.tilted(
            candidates.reference, candidates.mass_CA, candidates.score_CA, candidates.empty_C, kl.act, kl.decision
        )

    def nothing(*_: Any) -> Any:
        return None

    beside = lists if algorithm.lists else optimum if algorithm.optimum else nothing

    def first_items(rollout: Rollout, kl: Coefficients, key: jax.Array) -> tuple[FirstItems, Known]:
        assert rollout.candidates is not None
        candidates, key = rollout.candidates, jax.random.split(jax.random.fold_in(key, 1), 3)[2]
        acts, known = all_acts.known_advantages(
            candidates.row_CA,
            candidates.weight_CA,
            candidates.first,
            candidates.reference,
            candidates.score_CA,
            candidates.empty_C,
            *kl[:2],
        )
        learned = beside(candidates, acts, kl, key)
        return FirstItems(rollout.contexts.features, candidates.hidden_CD, acts, learned), known

    return first_items if c.all_acts else lambda *_: (None, None)


def experience(
    contexts: Contexts, rows: RolloutBatch, advantage_BR: jax.Array, return_BR: jax.Array, part: slice
) -> Experience:
    """Some of the rows, by context."""
    per_token = (
        rows.replies.tokens_BR, rows.replies.mask_BR, rows.masks.act_BR, rows.old.logp_BR, rows.reference.logp_BR,
        rows.value_BR, advantage_BR, return_BR,
    )  # fmt: skip
    return Experience(contexts, *(a[part].reshape(len(contexts.prompt_CP), -1, a.shape[-1]) for a in per_token))
