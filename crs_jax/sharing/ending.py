"""The vector that says `<|end|>` in transformers' GPT-2, which has no log-odds beside its words.

A policy ends by log-odds against all words together (`models/decisions.py`); in transformers' the end's logit is a
product with the hidden state like any word's. So its vector is the least-squares fit of that logit, the log-odds plus
the words' log-sum-exp, on hidden states of replies.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.models.likelihood import log_normaliser
from crs_jax.models.policy import Policy, logits_of
from crs_jax.rl.scoring import parts, tree_hidden
from crs_jax.training.contexts import Contexts
from crs_jax.training.ppo_stage import Model

RIDGE = 1e-3  # of the mean square of hidden states


def ending(model: Model, contexts: Contexts, tokens_BR: np.ndarray, mask_BR: np.ndarray) -> np.ndarray:
    """`[D]`, from what the policy says at each word of replies `[B, R]` to contexts."""
    graphdef, params, frozen = model

    @jax.jit
    def wanted(params: Any, frozen: Any, contexts: Contexts, tokens_BR: jax.Array, mask_BR: jax.Array):
        policy: Policy = nnx.merge(graphdef, params, frozen)
        tables, layout = policy.tables(), policy.layout
        prompt = contexts.prompt_CP, contexts.mask_CP
        hidden_BRD = tree_hidden(policy, tables, *prompt, tokens_BR[:, None], mask_BR[:, None]).before[:, 0]
        split = parts(tokens_BR, mask_BR, layout)
        none_BRM = jnp.full((*tokens_BR.shape, layout.act_items), -1)
        logits = policy.word_logits(hidden_BRD, tables, none_BRM)
        words_BRV = logits_of(hidden_BRD, policy.words[...][: layout.num_words].astype(hidden_BRD.dtype))
        legal_V = logits.main[0, 0, : layout.num_words] > -1e8
        mass_BR = jax.nn.logsumexp(words_BRV, -1, where=legal_V)
        return hidden_BRD, split.word_BR, logits.extra[..., -1] + mass_BR, log_normaliser(logits)

    hidden, words, logit, _ = (np.asarray(a) for a in wanted(params, frozen, contexts, tokens_BR, mask_BR))
    x_ND, y_N = hidden[words].astype(np.float64), logit[words].astype(np.float64)
    gram_DD = x_ND.T @ x_ND
    gram_DD += RIDGE * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    return np.linalg.solve(gram_DD, x_ND.T @ y_N).astype(np.float32)
