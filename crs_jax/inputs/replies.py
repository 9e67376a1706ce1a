"""Human replies as the sampler would have written them: arrays beside windowed prompts, and their likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import Task
from crs_jax.models.policy import Policy
from crs_jax.rl.ppo import masked_sum
from crs_jax.rl.scoring import reply_likelihood, token_masks, tree_hidden


def reply_arrays(
    task: Task, split: str, where: Sequence[tuple[int, int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, R]` after `<|rec|>` and their mask; a reply longer than R is cut.

    R is `width`, or `config.data.reply_tokens`.
    """
    R = width or task.config.data.reply_tokens
    tokens_BR = np.full((len(where), R), task.tokenizer.pad, np.int32)
    mask_BR = np.zeros((len(where), R), bool)
    for b, (d, t) in enumerate(where):
        reply = task.encoded[split][d][t][2 : 2 + R]
        tokens_BR[b, : len(reply)] = reply
        mask_BR[b, : len(reply)] = True
    return tokens_BR, mask_BR


def whole_replies(task: Task, split: str, where: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """As `reply_arrays`, but whole, however few `config.data.reply_tokens` are: as wide as the longest needs.

    A reply that would reach beyond `config.model.positions` behind a full context is cut there.
    """
    c = task.config
    longest = max((len(task.encoded[split][d][t]) - 2 for d, t in where), default=0)
    width = min(max(longest, c.data.reply_tokens), c.model.positions - c.data.context_tokens)
    return reply_arrays(task, split, where, width)


def reply_nll(
    graphdef: Any,
    params: Any,
    frozen: Any,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    tokens_BR: jax.Array,
    mask_BR: jax.Array,
    features: ContextFeatures,
) -> dict[str, jax.Array]:
    """Summed negative log-likelihoods (nats) of replies given windowed prompts, with what to divide them by.

    `text_nll` is of the words alone that are bytes of text: neither titles nor `<|end|>`.
    Also `hits`: acts whose first item stands among the first ten of the ranking at `<|rec|>`, of `recommending` acts.
    """
    policy: Policy = nnx.merge(graphdef, params, frozen)
    tables = policy.tables()
    hidden = tree_hidden(policy, tables, prompt_BP, prompt_mask_BP, tokens_BR[:, None], mask_BR[:, None])
    before_BRD = hidden.before[:, 0]
    item_query = policy.item_query(features)
    logp_BR = reply_likelihood(policy, tables, before_BRD, tokens_BR, mask_BR, item_query=item_query).logp_BR
    split = token_masks(tokens_BR, mask_BR, policy.layout)
    first_B = split.items_BM[:, 0]
    logits_BN = policy.item_logits(policy.acting(before_BRD[:, 0], item_query), tables, item_query.beside)
    target_B1 = jnp.take_along_axis(logits_BN, jnp.maximum(first_B, 0)[:, None], -1)
    recommending_B = first_B >= 0
    return {
        "act_nll": -masked_sum(logp_BR, split.act_BR),
        "act_tokens": split.act_BR.sum(),
        "word_nll": -masked_sum(logp_BR, split.word_BR),
        "word_tokens": split.word_BR.sum(),
        "text_nll": -masked_sum(logp_BR, split.word_BR & (tokens_BR < policy.layout.num_words)),
        "hits": ((logits_BN >= target_B1).sum(-1) <= 10).sum(where=recommending_B),
        "recommending": recommending_B.sum(),
    }
