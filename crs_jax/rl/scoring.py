"""Whole-sequence passes over prompts and their replies: what PPO's losses, the reference and the reward model see.

A context's G replies stand behind one prompt in one row of P + G x R tokens, each reply attending to the prompt and to
itself alone, with positions as if it stood there alone: the same numbers as G rows of P + R tokens, for less work.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crs_jax.models.layout import Layout
from crs_jax.models.likelihood import act_likelihood, word_likelihood
from crs_jax.models.policy import Policy, Tables
from crs_jax.models.query import ItemQuery
from crs_jax.rl.sampling import positions


class Hidden(NamedTuple):
    """Hidden states of replies, `[C, G, R, D]`: `before` predicts each token, `at` has read it."""

    before: jax.Array
    at: jax.Array


class TokenMasks(NamedTuple):
    """What the grammar says of each reply token.

    Attributes:
      act_BR: real tokens of the act, `<|say|>` included.
      word_BR: real tokens after `<|say|>`.
      items_BM: rows of the act's items, -1 padded.
      say_BR, last_BR: one True a row: at `<|say|>` (none where it never came) and at the last real token.
      ended_B: the reply has its `<|end|>`.
    """

    act_BR: jax.Array
    word_BR: jax.Array
    items_BM: jax.Array
    say_BR: jax.Array
    last_BR: jax.Array
    ended_B: jax.Array


class TokenLikelihood(NamedTuple):
    """Per reply token, `[B, R]`, 0 on padding.

    `decision_BR` is the part of an item's or of `<|say|>`'s log-probability that says which of the two it is; 0 on
    words.
    """

    logp_BR: jax.Array
    entropy_BR: jax.Array
    decision_BR: jax.Array


def token_masks(tokens_BR: jax.Array, mask_BR: jax.Array, layout: Layout) -> TokenMasks:
    """Splits replies into act and words."""
    say_BR = (tokens_BR == layout.say) & mask_BR
    said = jnp.cumsum(say_BR, -1)
    act_BR = mask_BR & (said - say_BR == 0)
    head_BM = tokens_BR[:, : layout.act_items]
    proposed_BM = act_BR[:, : layout.act_items] & (head_BM >= layout.item_offset)
    last_BR = mask_BR & ~jnp.pad(mask_BR, ((0, 0), (0, 1)))[:, 1:]
    return TokenMasks(
        act_BR,
        mask_BR & ~act_BR,
        jnp.where(proposed_BM, head_BM - layout.item_offset, -1),
        say_BR,
        last_BR,
        (mask_BR & (tokens_BR == layout.end)).any(-1),
    )


def tree_hidden(
    policy: Policy,
    tables: Tables,
    prompt_CP: jax.Array,
    prompt_mask_CP: jax.Array,
    tokens_CGR: jax.Array,
    mask_CGR: jax.Array,
    key: jax.Array | None = None,
) -> Hidden:
    """Hidden states of all replies from one pass over rows of P + G x R tokens."""
    C, G, R = tokens_CGR.shape
    P = prompt_CP.shape[1]
    tokens_CT = jnp.concatenate([prompt_CP, tokens_CGR.reshape(C, G * R)], 1)
    mask_CT = jnp.concatenate([prompt_mask_CP, mask_CGR.reshape(C, G * R)], 1)
    reply_position = prompt_mask_CP.sum(-1)[:, None, None] + positions(mask_CGR)
    position_CT = jnp.concatenate([positions(prompt_mask_CP), reply_position.reshape(C, G * R)], 1)
    reply_T = jnp.concatenate([jnp.full(P, -1), jnp.repeat(jnp.arange(G), R)])
    order_T = jnp.arange(P + G * R)
    sees_TS = (order_T[None] <= order_T[:, None]) & ((reply_T[None] == -1) | (reply_T[None] == reply_T[:, None]))
    hidden_CTD = policy.trunk(policy.embed(tokens_CT, tables), position_CT, sees_TS & mask_CT[:, None], key)
    at = hidden_CTD[:, P:].reshape(C, G, R, -1)
    first = jnp.broadcast_to(hidden_CTD[:, None, P - 1 : P], (C, G, 1, at.shape[-1]))
    return Hidden(jnp.concatenate([first, at[:, :, :-1]], 2), at)


def reply_likelihood(
    policy: Policy,
    tables: Tables,
    hidden_BRD: jax.Array,
    tokens_BR: jax.Array,
    mask_BR: jax.Array,
    temperature: float = 1.0,
    item_query: ItemQuery | None = None,
    act_chunk: int | None = None,
    word_chunk: int | None = None,
) -> TokenLikelihood:
    """Log-probabilities and entropies of reply tokens under the grammar.

    Item logits are computed at the first M + 1 slots only: no act is longer.

    Args:
      policy: the scorer.
      tables: from `Policy.tables`.
      hidden_BRD: states that predict each token (`Hidden.before`).
      tokens_BR, mask_BR: the replies.
      temperature: the sampler's.
      item_query: of each reply's context, leading axis B, joined at act slots.
      act_chunk, word_chunk: tokens of time at once; None: as many as memory allows (`models/likelihood.py`).
    """
    layout = policy.layout
    masks = token_masks(tokens_BR, mask_BR, layout)
    R = tokens_BR.shape[1]
    A = min(layout.act_items + 1, R)
    before = jnp.arange(layout.act_items)[None, :] < jnp.arange(A)[:, None]
    used_BAM = jnp.where(before, masks.items_BM[:, None], -1)
    row_BA = tokens_BR[:, :A] - layout.item_offset
    act_target_BA = jnp.where(tokens_BR[:, :A] == layout.say, layout.num_items, jnp.maximum(row_BA, 0))
    item_query = jax.tree.map(lambda a: a[:, None], item_query)
    acting, beside = policy.acting(hidden_BRD[:, :A], item_query), None if item_query is None else item_query.beside
    act = act_likelihood(policy, tables, acting, used_BAM, act_target_BA, beside, temperature, act_chunk)

    match_BRM = (tokens_BR[..., None] - layout.item_offset) == masks.items_BM[:, None]
    is_own = (match_BRM & (masks.items_BM[:, None] >= 0)).any(-1)
    word_target_BR = jnp.where(is_own, layout.item_offset + match_BRM.argmax(-1), tokens_BR)
    word_target_BR = jnp.minimum(word_target_BR, layout.item_offset + layout.act_items - 1)
    own_BRM = jnp.broadcast_to(masks.items_BM[:, None], (*tokens_BR.shape, layout.act_items))
    word = word_likelihood(policy, tables, hidden_BRD, own_BRM, word_target_BR, temperature, word_chunk)

    def join(a_BA, w_BR):
        a_BR = jnp.pad(a_BA, ((0, 0), (0, R - A)))
        return jnp.where(masks.act_BR, a_BR, jnp.where(masks.word_BR, w_BR, 0.0))

    no_decision_BR = jnp.zeros_like(word.kind)
    return TokenLikelihood(
        join(act.logp, word.logp), join(act.entropy, word.entropy), join(act.kind, no_decision_BR)
    )  # fmt: skip
