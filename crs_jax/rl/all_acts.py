"""The first token of an act, summed over acts instead of sampled: PPO's surrogate where the reward is known.

What a reply earns depends most on the item it proposes first, and of one item the reward model can say it from two
tokens. So the surrogate of the first token is summed over acts (the all-actions policy gradient, Sutton et al. 2001):
the likeliest, and some of the others, drawn and weighted so that the sum stays without bias. It needs no sampled words,
so it is taken over many more contexts than are replied to, and from sampled replies the words alone learn: further
items of a slate are read off the same query. Only where something is earned that the score of an act does not hold,
by later turns or a reward of one's own, do sampled acts learn too, from what they earn beyond it.

A first token is two decisions: whether to propose, and which item. Each has a ratio, a clip and a KL coefficient of its
own, so that the one can be held while the other moves. Axes: C contexts, A items.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crs_jax.models.likelihood import FirstToken
from crs_jax.rl.ppo import policy_loss


class Acts(NamedTuple):
    """Items of C contexts, A each, and whether to propose at all, under the policy that samples.

    Attributes:
      row_CA: rows of the items.
      weight_CA: what each counts for in an expectation over all items, given that one is proposed.
      logp_CA: log-probabilities, given that one is proposed.
      kind_C2: log-probabilities of proposing, and of `<|say|>` (no proposal).
      advantage_CA: what an item earns beyond the policy's mean over these items.
      advantage_C2: what proposing, and not, earns beyond the policy's mean over both.
    """

    row_CA: jax.Array
    weight_CA: jax.Array
    logp_CA: jax.Array
    kind_C2: jax.Array
    advantage_CA: jax.Array
    advantage_C2: jax.Array


class Known(NamedTuple):
    """What is known of the rewards of C contexts: `score_CA` of each act, `mean_C2` of the policy's items less their KL
    penalties, and of no proposal.
    """

    score_CA: jax.Array
    mean_C2: jax.Array


def choose(item_CN: jax.Array, count: int, drawn: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`count` items of each context and their weights `[C, A]`: the likeliest, and last `drawn` of the others.

    Those stand for all others: they are drawn by their probabilities, with replacement, and share their mass evenly.

    Args:
      item_CN: log-probabilities of items given that one is proposed.
      count, drawn: A, and how many of them are drawn; none where A is the whole catalogue.
      key: for the draws.
    """
    C, N = item_CN.shape
    drawn = 0 if count >= N else drawn
    logp_CT, top_CT = jax.lax.top_k(item_CN, min(count, N) - drawn)
    if not drawn:
        return top_CT, jnp.exp(logp_CT)
    other_CN = jnp.exp(item_CN).at[jnp.arange(C)[:, None], top_CT].set(0.0)
    sum_CN = jnp.cumsum(other_CN, 1)
    at_CD = jax.random.uniform(key, (C, drawn)) * sum_CN[:, -1:]
    row_CD = jnp.minimum(jax.vmap(lambda s, u: jnp.searchsorted(s, u, side="right"))(sum_CN, at_CD), N - 1)
    weight_CD = jnp.broadcast_to(sum_CN[:, -1:] / drawn, row_CD.shape)
    return jnp.concatenate([top_CT, row_CD.astype(top_CT.dtype)], 1), jnp.concatenate([jnp.exp(logp_CT), weight_CD], 1)


def at(first: FirstToken, row_CA: jax.Array) -> FirstToken:
    """Of some items: log-probabilities `[C, A]` in place of `[C, N]`."""
    return first._replace(item_CN=jnp.take_along_axis(first.item_CN, row_CA, 1))


def known_advantages(
    row_CA: jax.Array,
    weight_CA: jax.Array,
    first: FirstToken,
    reference: FirstToken,
    score_CA: jax.Array,
    empty_C: jax.Array,
    item_kl: jax.Array,
    kind_kl: jax.Array,
) -> tuple[Acts, Known]:
    """Scores less the KL penalty of the token, less their mean under the policy; no gradient.

    Args:
      row_CA, weight_CA: the items (`choose`).
      first, reference: of these items (`at`), under the policy and under the reference.
      score_CA: of the acts with one of the items each.
      empty_C: of the act without any.
      item_kl, kind_kl: KL coefficients, of the item and of whether to propose.
    """
    logp_CA, kind_C2 = first
    value_CA = score_CA - item_kl * (logp_CA - reference.item_CN)
    mean_C = weighted_mean(value_CA, weight_CA)
    mean_C2 = jnp.stack([mean_C, empty_C], -1)
    value_C2 = mean_C2 - kind_kl * (kind_C2 - reference.kind_C2)
    overall_C = weighted_mean(value_C2, jnp.exp(kind_C2))
    advantages = value_CA - mean_C[:, None], value_C2 - overall_C[:, None]
    return jax.lax.stop_gradient((Acts(row_CA, weight_CA, logp_CA, kind_C2, *advantages), Known(score_CA, mean_C2)))


def weighted_mean(value_CA: jax.Array, weight_CA: jax.Array) -> jax.Array:
    """`[C]`."""
    return (weight_CA * value_CA).sum(1) / jnp.maximum(weight_CA.sum(1), 1e-12)


def joint_advantage(acts: Acts) -> jax.Array:
    """Of first tokens as a whole, `[C, A + 1]`: the items, and `<|say|>` last."""
    return jnp.concatenate([acts.advantage_CA + acts.advantage_C2[:, :1], acts.advantage_C2[:, 1:]], 1)


def variance(acts: Acts) -> jax.Array:
    """Of the known advantages, whose mean is 0, under the policy and over all contexts."""
    kind_C2 = jnp.exp(acts.kind_C2)
    p_CA = jnp.concatenate([acts.weight_CA * kind_C2[:, :1], kind_C2[:, 1:]], 1)
    return weighted_mean(jnp.square(joint_advantage(acts)), p_CA).mean()


def surrogate(first: FirstToken, old: Acts, clip: float) -> jax.Array:
    """Of each context `[C]`: the clipped surrogate, to be minimised, in expectation under the old policy.

    `first` is that of the acts' items (`at`) under the policy that learns.
    """
    item_CA, _ = policy_loss(first.item_CN, old.logp_CA, old.advantage_CA, clip)
    kind_C2, _ = policy_loss(first.kind_C2, old.kind_C2, old.advantage_C2, clip)
    proposes_C = jnp.exp(old.kind_C2[:, 0])
    return proposes_C * (old.weight_CA * item_CA).sum(1) + (jnp.exp(old.kind_C2) * kind_C2).sum(1)


def of_sampled(acts: Acts, known: Known, row_CG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Known rewards `[C, G]` of sampled first tokens: rows of items, -1 for `<|say|>`; and whether each is listed.

    Of an item that is not listed the mean is known. Less these, what is sampled has to be paid the KL penalty of the
    item alone, and only where it is not listed: all else of the first token is in the sum over acts.
    """
    same_CGA = row_CG[:, :, None] == acts.row_CA[:, None]
    listed_CG, item_CG = same_CGA.any(-1), (same_CGA * known.score_CA[:, None]).sum(-1)
    item_CG = jnp.where(listed_CG, item_CG, known.mean_C2[:, :1])
    none_CG = row_CG < 0
    return jnp.where(none_CG, known.mean_C2[:, 1:], item_CG), listed_CG | none_CG


def tilted(
    reference: FirstToken,
    mass_CA: jax.Array,
    score_CA: jax.Array,
    empty_C: jax.Array,
    item_kl: jax.Array,
    kind_kl: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The optimum of scores less KL penalties, `ref exp(score / kl)` over its sum, as probabilities.

    Args:
      reference: of the items (`at`).
      mass_CA: what each item counts for in a sum over all items: 1, or for one that stands for others more.
      score_CA, empty_C, item_kl, kind_kl: as for `known_advantages`; coefficients above 0.

    Returns:
      Of the items `[C, A]`, `mass_CA` counted in, and of both kinds `[C, 2]`; each sums to 1.
    """
    logit_CA = reference.item_CN + jnp.log(mass_CA) + score_CA / item_kl
    norm_C = jax.nn.logsumexp(logit_CA, 1)
    value_C2 = jnp.stack([item_kl * norm_C, empty_C], -1)
    p_C2 = jax.nn.softmax(reference.kind_C2 + value_C2 / kind_kl, -1)
    return jax.lax.stop_gradient((jnp.exp(logit_CA - norm_C[:, None]), p_C2))


def cross_entropy(first: FirstToken, target: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of each context `[C]`: -sum of target probabilities (`tilted`) times log-probabilities of first tokens."""
    p_CA, p_C2 = target
    return -p_C2[:, 0] * (p_CA * first.item_CN).sum(1) - (p_C2 * first.kind_C2).sum(1)
