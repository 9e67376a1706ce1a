"""The vector that says `<|end|>` in a transformers model, which has no log-odds beside its words.

A policy ends by log-odds against all words together (`models/decisions.py`); in transformers' the end's logit is a
product with the hidden state like any word's. So its vector is the least-squares fit of that logit, the log-odds plus
the words' log-sum-exp, on hidden states of replies.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.windows import make_windows
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import Task
from crs_jax.models.policy import MASKED, Policy
from crs_jax.models.products import logits_of
from crs_jax.rl.frozen_models import Model
from crs_jax.rl.scoring import token_masks, tree_hidden

RIDGE = 1e-3  # of the mean square of hidden states
REPLIES, BATCH = 1024, 32


def fitted_ending(task: Task, model: Model) -> np.ndarray:
    """`[D]`, on replies of the training split, as many as `REPLIES`."""
    places = task.replies("train")
    chosen = np.random.default_rng(task.config.seed).permutation(len(places))[:REPLIES]
    x_ND, y_N = endings(task, model, "train", [places[n] for n in sorted(chosen)])
    gram_DD = x_ND.T @ x_ND
    gram_DD += RIDGE * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    return np.linalg.solve(gram_DD, x_ND.T @ y_N).astype(np.float32)


def endings(task: Task, model: Model, split: str, where: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states `[n, D]` before each word of the replies at (dialogue, turn), and the logits `[n]` of `<|end|>`."""
    graphdef, params, frozen = model
    numbers = sorted({d for d, _ in where})
    dialogues = [task.dialogues(split)[d] for d in numbers]
    encoded = task.tokenizer.encode_dialogues(dialogues, task.corpus.catalogue, task.config.data.act_items)
    here = [(numbers.index(d), t) for d, t in where]
    windows = make_windows(task.config, encoded, here, task.tokenizer)
    replies = reply_arrays(dataclasses.replace(task, encoded={split: encoded}), split, here)
    arrays = (windows.tokens_BP, windows.mask_BP, *replies)
    states, logits = [], []
    for start in range(0, len(where), BATCH):
        index = np.minimum(np.arange(start, start + BATCH), len(where) - 1)
        found = _endings(graphdef, params, frozen, *(a[index] for a in arrays))
        hidden_BRD, word_BR, logit_BR = (np.asarray(a, np.float64)[: len(where) - start] for a in found)
        states.append(hidden_BRD[word_BR > 0])
        logits.append(logit_BR[word_BR > 0])
    return np.concatenate(states), np.concatenate(logits)


@functools.partial(jax.jit, static_argnums=0)
def _endings(
    graphdef: Any,
    params: Any,
    frozen: Any,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    tokens_BR: jax.Array,
    mask_BR: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    policy: Policy = nnx.merge(graphdef, params, frozen)
    tables, layout = policy.tables(), policy.layout
    reply = tokens_BR[:, None], mask_BR[:, None]
    hidden_BRD = tree_hidden(policy, tables, prompt_BP, prompt_mask_BP, *reply).before[:, 0]
    none_BRM = jnp.full((*tokens_BR.shape, layout.act_items), -1)
    logits = policy.word_logits(hidden_BRD, tables, none_BRM)
    centred_BRV = logits_of(hidden_BRD, tables.output_VD)
    mean_D = tables.mean_D if policy.output is None else policy.centred(policy.output[...])[1]
    mass_BR = jax.nn.logsumexp(centred_BRV, -1, where=logits.main > MASKED) + hidden_BRD @ mean_D
    return hidden_BRD, token_masks(tokens_BR, mask_BR, layout).word_BR, logits.extra[..., -1] + mass_BR
