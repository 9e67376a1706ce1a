"""Log-probabilities and entropies of tokens under the grammar, in chunks of time where the logits are many.

An array of the logits of B x T x V tokens takes at most `LOGITS_BYTES` on a device: `scan` goes over chunks of T, and
each is recomputed in the backward pass. What fits in one chunk is not recomputed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.models.policy import MASKED, Beside, Logits, Policy, SlateState, Tables
from crs_jax.models.query import ItemQuery

LOGITS_BYTES = 2**28
"""Most bytes of one array of float32 logits on a device; a gradient has three or four of them at a time."""


class Likelihood(NamedTuple):
    """Log-probability of the target, entropy of its distribution, and log-probability of the target's kind: of a row of
    the table, or of what stands beside it; nats, float32.
    """

    logp: jax.Array
    entropy: jax.Array
    kind: jax.Array


class FirstToken(NamedTuple):
    """The first token of a slate, nats, float32.

    Attributes:
      item_CN: log-probabilities of the items, given that one is proposed.
      kind_C2: those of proposing and, second, of `<|say|>`: no proposal.
    """

    item_CN: jax.Array
    kind_C2: jax.Array

    @property
    def joint(self) -> jax.Array:
        """`[C, N + 1]`: the items, and `<|say|>` last."""
        return jnp.concatenate([self.item_CN + self.kind_C2[:, :1], self.kind_C2[:, 1:]], -1)


def log_normaliser(logits: Logits) -> jax.Array:
    """Log of the mass of main and extra together, `[...]`; that of main alone is 1."""
    return jnp.logaddexp(0.0, jax.nn.logsumexp(logits.extra, -1))


def likelihood(logits: Logits, target: jax.Array) -> Likelihood:
    """Of `target`, an index into main followed by extra."""
    width = logits.main.shape[-1]
    total = log_normaliser(logits)
    main = jnp.take_along_axis(logits.main, jnp.minimum(target, width - 1)[..., None], -1)[..., 0]
    extra = jnp.take_along_axis(logits.extra, jnp.clip(target - width, 0)[..., None], -1)[..., 0]
    chosen = jnp.where(target < width, main, extra)
    entropy = jnp.zeros_like(total)
    for part in logits:
        logp = part - total[..., None]
        entropy = entropy - (jnp.exp(logp) * jnp.where(part > MASKED, logp, 0.0)).sum(-1)
    kind = jnp.where(target < width, 0.0, jax.nn.logsumexp(logits.extra, -1)) - total
    return Likelihood(chosen - total, entropy, kind)


def first_token(
    policy: Policy, tables: Tables, hidden_CD: jax.Array, item_query: ItemQuery, temperature: float = 1.0
) -> FirstToken:
    """Of contexts, C rows.

    Args:
      policy, tables: the scorer and its tables.
      hidden_CD: states that have read `<|rec|>`.
      item_query: of the contexts.
      temperature: the sampler's.
    """
    none_CM = jnp.full((len(hidden_CD), policy.layout.act_items), -1)
    logits = policy.act_logits(policy.acting(hidden_CD, item_query), tables, none_CM, item_query.beside, temperature)
    kind_C2 = jax.nn.log_sigmoid(jnp.concatenate([-logits.extra, logits.extra], -1))
    return FirstToken(logits.main[:, : policy.layout.num_items], kind_C2)


def act_likelihood(
    policy: Policy,
    tables: Tables,
    acting: SlateState,
    used_BTM: jax.Array,
    target_BT: jax.Array,
    beside: Beside | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Likelihood:
    """Of act tokens: `target_BT` is an item row, or the number of items N for `<|say|>`.

    `acting` are states `[B, T, ...]`; `beside` are rows and gains of the query, `[B, T or 1, Y]` each; `chunk` is
    `in_chunks`'.
    """

    def one(given: tuple[SlateState, Beside | None], used: jax.Array, target: jax.Array) -> Likelihood:
        logits = policy.act_logits(given[0], tables, used, given[1], temperature)
        return likelihood(logits, jnp.where(target >= policy.layout.num_items, logits.main.shape[-1], target))

    given = jax.tree.map(lambda a: jnp.broadcast_to(a, (*target_BT.shape, a.shape[-1])), (acting, beside))
    return in_chunks(one, chunk or fitting(target_BT, tables.items_ND), given, used_BTM, target_BT)


def word_likelihood(
    policy: Policy,
    tables: Tables,
    hidden_BTD: jax.Array,
    own_BTM: jax.Array,
    target_BT: jax.Array,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Likelihood:
    """Of words: `target_BT` is a word's or `<|end|>`'s id, or `item_offset + j` for the act's j-th item."""
    layout = policy.layout

    def one(hidden: jax.Array, own: jax.Array, target: jax.Array) -> Likelihood:
        logits = policy.word_logits(hidden, tables, own, temperature)
        rows, M = logits.main.shape[-1], own.shape[-1]
        pointer = jnp.where(target >= layout.item_offset, rows + target - layout.item_offset, target)
        return likelihood(logits, jnp.where(target == layout.end, rows + M, pointer))

    return in_chunks(one, chunk or fitting(target_BT, tables.words_VD), hidden_BTD, own_BTM, target_BT)


def fitting(target_BT: jax.Array, table_VD: jax.Array) -> int:
    """Tokens of time whose logits over a table's rows are `LOGITS_BYTES` a device, at least 1."""
    mesh, rows = jax.sharding.get_abstract_mesh(), target_BT.shape[0]
    if not mesh.empty:  # rows are cut over data and fsdp where these divide them, the table over tensor
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = rows / (share if rows % share == 0 else 1) / mesh.shape["tensor"]
    return max(int(LOGITS_BYTES / (4 * rows * table_VD.shape[0])), 1)


def in_chunks(function, chunk: int, *trees_BT: Any) -> Likelihood:
    """`function` of trees of arrays `[B, T, ...]` over chunks of T, recomputed in the backward pass; same result as in
    one go.

    As many chunks as `chunk` asks for, as even as can be: 85 tokens by 64 are two chunks of 43, not 128 tokens.
    """
    T = jax.tree.leaves(trees_BT)[0].shape[1]
    if chunk >= T:
        return function(*trees_BT)
    chunks = -(-T // chunk)
    chunk = -(-T // chunks)

    def split(a):
        a = jnp.pad(a, [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], chunks, chunk, *a.shape[2:]), 1, 0)

    out = lax.map(lambda xs: jax.checkpoint(function)(*xs), jax.tree.map(split, trees_BT))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)[:, :T], out)
