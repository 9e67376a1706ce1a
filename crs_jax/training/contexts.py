"""The contexts that a policy replies to: prompts, and what they say of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from crs_jax.data.windows import make_windows
from crs_jax.features.context import ContextFeatures
from crs_jax.models.policy import Policy, Tables
from crs_jax.models.query import Wish
from crs_jax.rl.rollout import causal, positions
from crs_jax.training.split_features import features_at
from crs_jax.training.task import Task


class Contexts(NamedTuple):
    """Prompts of an iteration, C rows: tokens, left-padded, their mask, and what they say of items."""

    prompt_CP: jax.Array
    mask_CP: jax.Array
    features: ContextFeatures


def contexts_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> Contexts:
    """Host arrays of all contexts of a split that the list names."""
    windows: Any = make_windows(task.config, task.encoded[split], where, task.tokenizer)
    return Contexts(windows.tokens_BP, windows.mask_BP, features_at(task, split, where))


def after_rec(policy: Policy, contexts: Contexts) -> tuple[jax.Array, Tables, Wish]:
    """The hidden state `[C, D]` that has read `<|rec|>`, the tables, and the wish; inside jit."""
    tables, mask_CP = policy.tables(), contexts.mask_CP
    x_CPD = policy.embed(contexts.prompt_CP, tables)
    hidden_CD = policy.trunk(x_CPD, positions(mask_CP), causal(mask_CP))[:, -1]
    return hidden_CD, tables, policy.wish(contexts.features)
