"""Log-probabilities and entropies of tokens under the grammar, in chunks of time where the logits are many.

An array of the logits of B x T x V tokens takes at most `LOGITS_BYTES` on a device: `scan` goes over chunks of T, and
each is recomputed in the backward pass. What fits in one chunk is not recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.models.policy import Beside, Logits, Policy
from crs_jax.models.query import Wish

LOGITS_BYTES = 2**28
"""Most bytes of one array of float32 logits on a device; a gradient has three or four of them at a time."""


class Likelihood(NamedTuple):
    """Log-probability of the target and entropy of its distribution, nats, float32."""

    logp: jax.Array
    entropy: jax.Array


def log_normaliser(logits: Logits) -> jax.Array:
    """Log-sum-exp over main and extra together, `[...]`."""
    return jnp.logaddexp(jax.nn.logsumexp(logits.main, -1), jax.nn.logsumexp(logits.extra, -1))


def likelihood(logits: Logits, target: jax.Array, temperature: float = 1.0) -> Likelihood:
    """Of `target`, an index into main followed by extra, with the logits divided by `temperature`."""
    logits = Logits(logits.main / temperature, logits.extra / temperature)
    width = logits.main.shape[-1]
    total = log_normaliser(logits)
    main = jnp.take_along_axis(logits.main, jnp.minimum(target, width - 1)[..., None], -1)[..., 0]
    extra = jnp.take_along_axis(logits.extra, jnp.clip(target - width, 0)[..., None], -1)[..., 0]
    chosen = jnp.where(target < width, main, extra)
    entropy = total
    for part in logits:
        entropy = entropy - (jnp.exp(part - total[..., None]) * part).sum(-1)
    return Likelihood(chosen - total, entropy)


def first_logp(
    policy: Policy, items_NW: jax.Array, hidden_CD: jax.Array, wish: Wish, temperature: float = 1.0
) -> jax.Array:
    """Log-probabilities of an act's first token, float32 `[C, N + 1]`: the N items, and `<|say|>` last.

    Args:
      policy, items_NW: the scorer and its item table.
      hidden_CD: states that have read `<|rec|>`.
      wish: of the contexts.
      temperature: the sampler's.
    """
    none_CM = jnp.full((len(hidden_CD), policy.layout.act_items), -1)
    logits = policy.act_logits(policy.acting(hidden_CD, wish), items_NW, none_CM, wish.beside)
    logits = Logits(logits.main / temperature, logits.extra / temperature)
    both = jnp.concatenate([logits.main[:, : policy.layout.num_items], logits.extra], -1)
    return both - log_normaliser(logits)[:, None]


def act_likelihood(
    policy: Policy,
    items_NW: jax.Array,
    acting_BTW: jax.Array,
    used_BTM: jax.Array,
    target_BT: jax.Array,
    beside: Beside | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Likelihood:
    """Of act tokens: `target_BT` is an item row, or the number of items N for `<|say|>`.

    `beside` are rows and gains of the wish, `[B, T or 1, Y]` each; `chunk` is `in_chunks`'.
    """

    def one(acting, used, target, *beside):
        logits = policy.act_logits(acting, items_NW, used, beside or None)
        target = jnp.where(target >= policy.layout.num_items, logits.main.shape[-1], target)
        return likelihood(logits, target, temperature)

    each = [jnp.broadcast_to(a, (*target_BT.shape, a.shape[-1])) for a in beside or ()]
    return in_chunks(one, chunk or fitting(target_BT, items_NW), acting_BTW, used_BTM, target_BT, *each)


def word_likelihood(
    policy: Policy,
    items_NW: jax.Array,
    hidden_BTD: jax.Array,
    own_BTM: jax.Array,
    target_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Likelihood:
    """Of words: `target_BT` is a word's or `<|end|>`'s id, or `item_offset + j` for the act's j-th item."""

    def one(hidden, own, target):
        logits = policy.word_logits(hidden, items_NW, own)
        beyond = target - policy.layout.item_offset
        target = jnp.where(beyond >= 0, logits.main.shape[-1] + beyond, target)
        return likelihood(logits, target, temperature)

    return in_chunks(one, chunk or fitting(target_BT, policy.words[...]), hidden_BTD, own_BTM, target_BT)


def fitting(target_BT: jax.Array, table_VD: jax.Array) -> int:
    """Tokens of time whose logits over a table's rows are `LOGITS_BYTES` a device, at least 1."""
    mesh, rows = jax.sharding.get_abstract_mesh(), target_BT.shape[0]
    if not mesh.empty:  # rows are cut over data and fsdp where these divide them, the table over tensor
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = rows / (share if rows % share == 0 else 1) / mesh.shape["tensor"]
    return max(int(LOGITS_BYTES / (4 * rows * table_VD.shape[0])), 1)


def in_chunks(function, chunk: int, *arrays_BT: jax.Array) -> Likelihood:
    """`function` over chunks of the second axis, recomputed in the backward pass; same result as in one go.

    As many chunks as `chunk` asks for, as even as can be: 85 tokens by 64 are two chunks of 43, not 128 tokens.
    """
    T = arrays_BT[0].shape[1]
    if chunk >= T:
        return function(*arrays_BT)
    chunks = -(-T // chunk)
    chunk = -(-T // chunks)

    def split(a):
        a = jnp.pad(a, [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], chunks, chunk, *a.shape[2:]), 1, 0)

    out = lax.map(lambda xs: jax.checkpoint(function)(*xs), tuple(split(a) for a in arrays_BT))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)[:, :T], out)
