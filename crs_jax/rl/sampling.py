"""Sampling replies: one prefill, then decode steps in scanned blocks inside a `while_loop` that ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.features.context import ContextFeatures
from crs_jax.models.likelihood import log_normaliser
from crs_jax.models.policy import Logits, Policy, Tables
from crs_jax.models.query import ItemQuery
from crs_jax.runtime.sharding import gathered

BLOCK = 128  # tables are padded to a multiple of this


class Replies(NamedTuple):
    """Sampled replies, B = C contexts x G replies, a context's side by side.

    Attributes:
      tokens_BR: what follows `<|rec|>`: act, `<|say|>`, words, `<|end|>`, then padding.
      mask_BR: True on real tokens, `<|end|>` included.
      logp_BR: log-probability under the sampler, nats, 0 on padding.
    """

    tokens_BR: jax.Array
    mask_BR: jax.Array
    logp_BR: jax.Array


def positions(mask: jax.Array) -> jax.Array:
    """Absolute positions: the exclusive cumulative sum of the mask over the last axis; 0 on leading padding."""
    mask = mask.astype(jnp.int32)
    return jnp.maximum(jnp.cumsum(mask, -1) - mask, 0)


def causal(mask_BT: jax.Array) -> jax.Array:
    """Attention mask `[B, T, T]`: a token sees real tokens not after it."""
    T = mask_BT.shape[-1]
    return jnp.tril(jnp.ones((T, T), bool)) & mask_BT[:, None, :]


def sample_logits(logits: Logits, key: jax.Array, greedy: bool = False) -> tuple[jax.Array, jax.Array]:
    """Draws from main and extra together.

    Exact Gumbel-max in two steps, a block of 128 and then a row in it, so that a draw costs V/128 + 128 random numbers
    rather than V. A masked entry is never drawn: a block without legal rows has no mass.

    Args:
      logits: main `[B, V]` with V a multiple of 128, extra `[B, X]`; at the temperature already.
      key: one key for the whole batch, or a key a row `[B]`.
      greedy: take the mode instead.

    Returns:
      Index into main followed by extra `[B]` and its log-probability `[B]`.
    """
    if key.ndim and not greedy:
        index_B1, logp_B1 = jax.vmap(sample_logits)(Logits(*(a[:, None] for a in logits)), key)
        return index_B1[:, 0], logp_B1[:, 0]
    B, V = logits.main.shape
    total = log_normaliser(logits)
    if greedy:
        both = jnp.concatenate(logits, -1)
        return both.argmax(-1), both.max(-1) - total
    blocks = logits.main.reshape(B, V // BLOCK, BLOCK)
    outer_key, inner_key = jax.random.split(key)
    outer = jnp.concatenate([jax.nn.logsumexp(blocks, -1), logits.extra], -1)
    choice_B = jax.random.categorical(outer_key, outer)
    block_B = jnp.minimum(choice_B, V // BLOCK - 1)
    within = jnp.take_along_axis(blocks, block_B[:, None, None], 1)[:, 0]
    row_B = block_B * BLOCK + jax.random.categorical(inner_key, within)
    beyond_B = choice_B - V // BLOCK
    index_B = jnp.where(beyond_B >= 0, V + beyond_B, row_B)
    main = jnp.take_along_axis(logits.main, row_B[:, None], -1)[:, 0]
    extra = jnp.take_along_axis(logits.extra, jnp.maximum(beyond_B, 0)[:, None], -1)[:, 0]
    return index_B, jnp.where(beyond_B >= 0, extra, main) - total


def act_mode(logits: Logits) -> tuple[jax.Array, jax.Array]:
    """The mode of an act's slot: the best item where proposing is likelier than `<|say|>`, for the mass of "propose" is
    spread over thousands of items. Index into main followed by extra and log-probability, `[B]`.
    """
    total = log_normaliser(logits)
    propose_B = logits.extra[:, 0] < 0
    index_B = jnp.where(propose_B, logits.main.argmax(-1), logits.main.shape[-1])
    return index_B, jnp.where(propose_B, logits.main.max(-1), logits.extra[:, 0]) - total


def keys_of(key: jax.Array, number_B: jax.Array) -> jax.Array:
    """A key for each number: that of an instance, whatever batch it is in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, number_B)


def folded(key: jax.Array, data: int | jax.Array) -> jax.Array:
    """`fold_in` of a key, or of a key a row."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data) if key.ndim else jax.random.fold_in(key, data)


class _State(NamedTuple):
    slot: jax.Array
    cache: Any  # the decoder's
    hidden_BD: jax.Array
    in_act_B: jax.Array
    done_B: jax.Array
    act_BM: jax.Array
    replies: Replies


def sample(
    policy: Policy,
    prompt_CP: jax.Array,
    prompt_mask_CP: jax.Array,
    key: jax.Array,
    *,
    group: int,
    reply_tokens: int,
    features: ContextFeatures | None = None,
    temperature: float | jax.Array = 1.0,
    block: int = 8,
    greedy: bool = False,
    proposed: jax.Array | None = None,
) -> Replies:
    """Samples `group` replies for each prompt.

    Args:
      policy: the recommender.
      prompt_CP: token ids, left-padded, ending in `<|recommender|> <|rec|>`.
      prompt_mask_CP: True on real tokens.
      key: a fresh key for this call; token r of all rows uses `fold_in(key, r)`. Or a key a reply `[B]`: then what is
        drawn does not depend on the batch that it is drawn in.
      group: G.
      reply_tokens: R, the longest reply; rows that reach it have no `<|end|>`.
      features: of each context, what its acts are matched with besides.
      temperature: of all choices (`Policy.act_logits`, `word_logits`).
      block: decode steps between two checks whether all rows have ended.
      greedy: take the mode of each step; at an act's slot, first whether to propose at all, then what.
      proposed: `[B, M]` rows of items, -1 where none: the other side answers, with words and these items alone, and
        prompts end in `<|seeker|>`.
    """
    tables = policy.tables()
    policy = gathered(policy, policy.dtype)
    B, R, M = prompt_CP.shape[0] * group, reply_tokens, policy.layout.act_items
    hidden_CPD, prompt = policy.trunk.prefill(
        policy.embed(prompt_CP, tables), positions(prompt_mask_CP), causal(prompt_mask_CP)
    )
    length_B = jnp.repeat(prompt_mask_CP.sum(-1), group)
    item_query = None if features is None else policy.item_query(features)
    item_query = jax.tree.map(lambda a: jnp.repeat(a, group, axis=0), item_query)
    draw = _next_token(policy, tables, item_query, temperature, key, greedy)

    def step(state: _State, _):
        r, live_B = state.slot, ~state.done_B
        token_B, logp_B = draw(state)
        said_B = live_B & state.in_act_B & (token_B == policy.layout.say)
        proposed_B = live_B & state.in_act_B & ~said_B
        here_BM = (jnp.arange(M) == (state.act_BM >= 0).sum(-1)[:, None]) & proposed_B[:, None]
        act_BM = jnp.where(here_BM, (token_B - policy.layout.item_offset)[:, None], state.act_BM)

        hidden_BD, cache = policy.trunk.decode(
            policy.embed(token_B, tables), length_B + r, prompt, prompt_mask_CP, state.cache, r
        )
        replies = Replies(
            state.replies.tokens_BR.at[:, r].set(token_B),
            state.replies.mask_BR.at[:, r].set(live_B),
            state.replies.logp_BR.at[:, r].set(logp_B),
        )
        done_B = state.done_B | (token_B == policy.layout.end)
        return _State(r + 1, cache, hidden_BD, state.in_act_B & ~said_B, done_B, act_BM, replies), None

    steps = -(-R // block) * block  # slots beyond R are cut off below
    blank_BR = jnp.zeros((B, steps))
    start = _State(
        jnp.int32(0),
        policy.trunk.empty_cache(B, steps),
        jnp.repeat(hidden_CPD[:, -1], group, axis=0),
        jnp.full(B, proposed is None),
        jnp.zeros(B, bool),
        jnp.full((B, M), -1, jnp.int32) if proposed is None else proposed.astype(jnp.int32),
        Replies(jnp.full((B, steps), policy.layout.pad, jnp.int32), blank_BR.astype(bool), blank_BR),
    )
    end = lax.while_loop(
        lambda s: (s.slot < steps) & ~s.done_B.all(), lambda s: lax.scan(step, s, None, length=block)[0], start
    )
    return Replies(*(a[:, :R] for a in end.replies))


def _next_token(
    policy: Policy,
    tables: Tables,
    item_query: ItemQuery | None,
    temperature: float | jax.Array,
    key: jax.Array,
    greedy: bool,
) -> Callable[[_State], tuple[jax.Array, jax.Array]]:
    """State -> each row's next token and its log-probability, padding and 0 where the row has ended; inside jit.

    The logits of acts are computed while some row is in its act, those of words while some row is past it.
    """
    layout, beside = policy.layout, None if item_query is None else item_query.beside

    def draw(state: _State) -> tuple[jax.Array, jax.Array]:
        B, M = state.act_BM.shape
        key_r = folded(key, state.slot)

        def act(hidden_BD):
            logits = policy.act_logits(policy.acting(hidden_BD, item_query), tables, state.act_BM, beside, temperature)
            index_B, logp_B = act_mode(logits) if greedy else sample_logits(logits, folded(key_r, 0))
            item = index_B < logits.main.shape[-1]
            return jnp.where(item, layout.item_offset + index_B, layout.say), logp_B

        def words(hidden_BD):
            logits = policy.word_logits(hidden_BD, tables, state.act_BM, temperature)
            index_B, logp_B = sample_logits(logits, folded(key_r, 1), greedy)
            rows = logits.main.shape[-1]
            own_B1 = jnp.clip(index_B - rows, 0, M - 1)[:, None]
            item_B = layout.item_offset + jnp.take_along_axis(state.act_BM, own_B1, 1)[:, 0]
            return jnp.where(index_B < rows, index_B, jnp.where(index_B == rows + M, layout.end, item_B)), logp_B

        def nothing(hidden_BD):
            return jnp.full(B, layout.pad, jnp.int32), jnp.zeros(B)

        live_B = ~state.done_B
        acting_B, talking_B = live_B & state.in_act_B, live_B & ~state.in_act_B
        act_token, act_logp = lax.cond(acting_B.any(), act, nothing, state.hidden_BD)
        word_token, word_logp = lax.cond(talking_B.any(), words, nothing, state.hidden_BD)
        token_B = jnp.where(acting_B, act_token, jnp.where(talking_B, word_token, layout.pad)).astype(jnp.int32)
        return token_B, jnp.where(acting_B, act_logp, jnp.where(talking_B, word_logp, 0.0))

    return draw
