"""The contexts that a policy replies to: prompts, and what they say of items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from crs_jax.features.context import ContextFeatures
from crs_jax.models.policy import Policy, Tables
from crs_jax.models.query import ItemQuery
from crs_jax.rl.sampling import causal, positions


class Contexts(NamedTuple):
    """Prompts of an iteration, C rows: tokens, left-padded, their mask, and what they say of items."""

    prompt_CP: jax.Array
    mask_CP: jax.Array
    features: ContextFeatures


def after_rec(policy: Policy, contexts: Contexts) -> tuple[jax.Array, Tables, ItemQuery]:
    """The hidden state `[C, D]` that has read `<|rec|>`, the tables, and the item query; inside jit."""
    tables, mask_CP = policy.tables(), contexts.mask_CP
    x_CPD = policy.embed(contexts.prompt_CP, tables)
    hidden_CD = policy.trunk(x_CPD, positions(mask_CP), causal(mask_CP))[:, -1]
    return hidden_CD, tables, policy.item_query(contexts.features)


def take(contexts: Contexts, index: np.ndarray, width: int | None = None) -> Contexts:
    """Rows of the contexts, their prompts `width` tokens wide where it is given."""
    rows: Contexts = jax.tree.map(lambda a: a[index], contexts)
    cut = slice(-width if width else None, None)
    return rows._replace(prompt_CP=rows.prompt_CP[:, cut], mask_CP=rows.mask_CP[:, cut])
