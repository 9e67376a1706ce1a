"""Lists proposed instead of single items: the policy gradient of discounted gain under Plackett-Luce, with PPO's clip.

A list is K items drawn one after another without replacement from the first token's distribution, worth
sum_k value(item_k) / log2(1 + k). Its first place is what `rl/all_acts.py` sums over; here stand the places after it.
Every place is an act of its own, given the items placed before: its value is summed over all items that are left, and
only what follows it is sampled (Oosterhuis 2021, PL-Rank, arXiv 2105.00855; by the score function alone it is PG-Rank,
Singh & Joachims 2019, arXiv 1805.10808). Beyond PL-Rank, what follows counts with each later place's mean over the
items left there instead of the value of the one that was drawn, less the mean of the context's other lists: the same
expectation and several times less variance.

Values are known advantages: scores less the KL penalty of the first token as of the policy that samples. So of free
logits the gradient of whole lists vanishes only where all values are equal, at p_ref exp(score / kl), the optimum of
single acts, and elsewhere it never leads away from there: values are -kl times the logits' error e up to a constant,
and in the order of logits - t e + Gumbel noise an item overtakes only those of lower value as t grows, so that the gain
along -e rises. What changes is that places below the first are learnt too. Lists are drawn from the likeliest acts
alone. Whether to propose is no matter of lists: the policy's probability of proposing only weighs them.

Axes: C contexts, A likeliest items, L lists, K places.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crs_jax.rl.all_acts import Acts
from crs_jax.rl.ppo import leave_one_out, policy_loss


def discounts(places: int) -> jax.Array:
    """Of the places 1 to K, `[K]`: 1 / log2(1 + k)."""
    return 1.0 / jnp.log2(jnp.arange(2.0, places + 2.0))


def draw(key: jax.Array, logp_CA: jax.Array, lists: int, places: int) -> jax.Array:
    """Lists `[C, L, K]` of columns of the items in `logp_CA`, drawn without replacement: the top K of log-probabilities
    with Gumbel noise. Catalogues of fewer items have shorter lists.
    """
    C, count = logp_CA.shape
    noise_CLA = jax.random.gumbel(key, (C, lists, count), logp_CA.dtype)
    return jax.lax.top_k(logp_CA[:, None] + noise_CLA, min(places, count))[1]


def left_over(place_CLK: jax.Array, items: int) -> jax.Array:
    """Whether an item is not yet placed before each place, `[C, L, K, A]`."""
    here_CLKA = jax.nn.one_hot(place_CLK, items, dtype=jnp.int32)
    return jnp.cumsum(here_CLKA, 2) - here_CLKA == 0


def placing(logp_CA: jax.Array, left_CLKA: jax.Array) -> jax.Array:
    """Log-probabilities `[C, L, K, A]` of the items at each place given those before it; only where they are left."""
    item_CA = logp_CA[:, None, None]
    return item_CA - jax.nn.logsumexp(item_CA, -1, where=left_CLKA, keepdims=True)


def surrogate(logp_CA: jax.Array, old: Acts, place_CLK: jax.Array, clip: float) -> jax.Array:
    """Of each context `[C]`: the clipped surrogate, to be minimised, of what lists add to their first place's value.

    Args:
      logp_CA: log-probabilities of the items under the policy that learns.
      old: under the policy that sampled; the items' advantages are their values.
      place_CLK: lists that `draw` gave with `old.logp_CA`.
      clip: of the ratio of each placement's probabilities, given the items before it.
    """
    left_CLKA = left_over(place_CLK, logp_CA.shape[1])
    new_CLKA, old_CLKA = placing(logp_CA, left_CLKA), placing(old.logp_CA, left_CLKA)
    p_CLKA = jnp.where(left_CLKA, jnp.exp(old_CLKA), 0.0)
    value_CA = old.advantage_CA[:, None, None]
    mean_CLK = (p_CLKA * value_CA).sum(-1)
    discount_K = discounts(place_CLK.shape[2])

    loss_CLKA, _ = policy_loss(new_CLKA, old_CLKA, discount_K[:, None] * (value_CA - mean_CLK[..., None]), clip)
    known_CLK = (p_CLKA * loss_CLKA).sum(-1)

    to_go_CLK = jnp.cumsum((discount_K * mean_CLK)[..., ::-1], -1)[..., ::-1]
    follows_CLK = leave_one_out(to_go_CLK - discount_K * mean_CLK)
    new_CLK, old_CLK = (jnp.take_along_axis(a, place_CLK[..., None], -1)[..., 0] for a in (new_CLKA, old_CLKA))
    sampled_CLK, _ = policy_loss(new_CLK, old_CLK, follows_CLK, clip)

    proposes_C = jnp.exp(old.kind_C2[:, 0])
    return proposes_C * (known_CLK[..., 1:].sum(-1) + sampled_CLK[..., :-1].sum(-1)).mean(-1)


def gain(score_CA: jax.Array, place_CLK: jax.Array) -> jax.Array:
    """Discounted mean of the scores of each list's items, `[C, L]`."""
    C, L, K = place_CLK.shape
    score_CLK = jnp.take_along_axis(score_CA, place_CLK.reshape(C, L * K), 1).reshape(C, L, K)
    return (discounts(K) * score_CLK).sum(-1) / discounts(K).sum()
