"""The vector that says `<|end|>` in transformers' GPT-2, which has no log-odds beside its words.

A policy ends by log-odds against all words together (`models/decisions.py`); in transformers' the end's logit is a
product with the hidden state like any word's. So its vector is the least-squares fit of that logit, the log-odds plus
the words' log-sum-exp, on hidden states of replies.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.models.policy import MASKED, Policy, logits_of
from crs_jax.rl.scoring import parts, tree_hidden
from crs_jax.training.contexts import Contexts, contexts_at
from crs_jax.training.ppo_stage import Model
from crs_jax.training.replies import reply_arrays
from crs_jax.training.task import Task

RIDGE = 1e-3  # of the mean square of hidden states
REPLIES = 1024


def fitted_ending(task: Task, model: Model) -> np.ndarray:
    """`[D]`, on replies of the training split, as many as `REPLIES`."""
    where = task.replies("train")
    chosen = np.random.default_rng(task.config.seed).permutation(len(where))[:REPLIES]
    some = [where[n] for n in sorted(chosen)]
    hidden, logit = [], []
    for start in range(0, len(some), task.config.evaluation.batch):
        batch = some[start : start + task.config.evaluation.batch]
        states_ND, logit_N = endings(model, contexts_at(task, "train", batch), *reply_arrays(task, "train", batch))
        hidden.append(states_ND)
        logit.append(logit_N)
    x_ND, y_N = np.concatenate(hidden).astype(np.float64), np.concatenate(logit).astype(np.float64)
    gram_DD = x_ND.T @ x_ND
    gram_DD += RIDGE * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    return np.linalg.solve(gram_DD, x_ND.T @ y_N).astype(np.float32)


def endings(
    model: Model, contexts: Contexts, tokens_BR: np.ndarray, mask_BR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states `[n, D]` before each word of the replies, and the logits `[n]` of `<|end|>` there."""
    graphdef, params, frozen = model
    found = _endings(graphdef, params, frozen, contexts, tokens_BR, mask_BR)
    hidden_BRD, word_BR, logit_BR = (np.asarray(a) for a in found)
    return hidden_BRD[word_BR], logit_BR[word_BR]


@functools.partial(jax.jit, static_argnums=0)
def _endings(graphdef: Any, params: Any, frozen: Any, contexts: Contexts, tokens_BR: jax.Array, mask_BR: jax.Array):
    policy: Policy = nnx.merge(graphdef, params, frozen)
    tables, layout = policy.tables(), policy.layout
    prompt = contexts.prompt_CP, contexts.mask_CP
    hidden_BRD = tree_hidden(policy, tables, *prompt, tokens_BR[:, None], mask_BR[:, None]).before[:, 0]
    none_BRM = jnp.full((*tokens_BR.shape, layout.act_items), -1)
    logits = policy.word_logits(hidden_BRD, tables, none_BRM)
    words_VD = policy.words[...].astype(hidden_BRD.dtype)
    mass_BR = jax.nn.logsumexp(logits_of(hidden_BRD, words_VD), -1, where=logits.main > MASKED)
    return hidden_BRD, parts(tokens_BR, mask_BR, layout).word_BR, logits.extra[..., -1] + mass_BR
