"""The first token of an act, summed over many acts instead of sampled: PPO's surrogate where the reward is known.

What a reply earns depends most on the item it proposes first, and of one item the reward model can say it from two
tokens. So the surrogate of the first token is summed over the likeliest acts (the all-actions policy gradient, Sutton
et al. 2001), and what was sampled corrects it by what it earned beyond that: sampled advantage less the known one, as a
control variate. While no ratio is clipped the sum of both has the expectation of the sampled surrogate, whatever the
known advantages are, and less noise the closer they come.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crs_jax.rl.ppo import policy_loss


class Acts(NamedTuple):
    """The likeliest first tokens of C contexts, A each.

    Attributes:
      row_CA: rows of items, N for `<|say|>` (no proposal), which always stands last.
      logp_CA: log-probabilities under the policy that samples.
      advantage_CA: known advantages.
    """

    row_CA: jax.Array
    logp_CA: jax.Array
    advantage_CA: jax.Array


def likeliest(logp_CN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Rows `[C, count + 1]` of the likeliest items and, last, of `<|say|>`, with their log-probabilities.

    `logp_CN` `[C, N + 1]` are those of all items and `<|say|>`.
    """
    logp_CA, row_CA = jax.lax.top_k(logp_CN[:, :-1], count)
    say_C1 = jnp.full((len(row_CA), 1), logp_CN.shape[1] - 1, row_CA.dtype)
    return jnp.concatenate([row_CA, say_C1], 1), jnp.concatenate([logp_CA, logp_CN[:, -1:]], 1)


def known_advantages(score_CA: jax.Array, logp_CA: jax.Array, reference_CA: jax.Array, kl: jax.Array) -> jax.Array:
    """Scores less the KL penalty of the token, less their mean under the policy; `[C, A]`, no gradient."""
    value_CA = score_CA - kl * (logp_CA - reference_CA)
    p_CA = jnp.exp(logp_CA)
    mean_C1 = (p_CA * value_CA).sum(1, keepdims=True) / jnp.maximum(p_CA.sum(1, keepdims=True), 1e-12)
    return jax.lax.stop_gradient(value_CA - mean_C1)


def surrogate(logp_CA: jax.Array, old: Acts, clip: float) -> jax.Array:
    """Of each context `[C]`: the clipped surrogate, to be minimised, weighted by the old policy's probabilities.

    `logp_CA` are the log-probabilities of the acts under the policy that learns.
    """
    loss_CA, _ = policy_loss(logp_CA, old.logp_CA, old.advantage_CA, clip)
    return (jnp.exp(old.logp_CA) * loss_CA).sum(1)


def of_sampled(acts: Acts, row_CG: jax.Array) -> jax.Array:
    """Known advantages `[C, G]` of the first tokens that were sampled (rows as in `Acts`), 0 for an act not among the
    likeliest.
    """
    same_CGA = row_CG[:, :, None] == acts.row_CA[:, None]
    return (same_CGA * acts.advantage_CA[:, None]).sum(-1)
