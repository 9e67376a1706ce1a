"""The contexts that a policy replies to: prompts, and the evidence and vectors beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from crs_jax.data.windows import make_windows
from crs_jax.models.policy import Policy, Tables
from crs_jax.models.query import Evidence, Wish
from crs_jax.rl.rollout import causal, positions
from crs_jax.training.replies import evidence_at
from crs_jax.training.task import Task


class Contexts(NamedTuple):
    """Prompts of an iteration, C rows, with what acts and relevance are matched with.

    Attributes:
      prompt_CP, mask_CP: tokens, left-padded.
      text_CE, named_CE: what the seeker said and the items named, as embeddings (`signals/relevance.py`).
      named_CX: rows of the items named before, the latest first, -1 padded.
      by_recommender_CX: 1 where the recommender named it first.
      asked_CZ: facets asked for (`signals/facets.py`).
      near_CK, nearness_CK: items that others named together with those (`signals/together.py`).
      starring_CS, stars_CS: items with people who were named (`signals/people.py`).
    """

    prompt_CP: jax.Array
    mask_CP: jax.Array
    text_CE: jax.Array
    named_CE: jax.Array
    named_CX: jax.Array
    by_recommender_CX: jax.Array
    asked_CZ: jax.Array
    near_CK: jax.Array
    nearness_CK: jax.Array
    starring_CS: jax.Array
    stars_CS: jax.Array

    @property
    def evidence(self) -> Evidence:
        """Of the policy's query."""
        named = (self.named_CX, self.by_recommender_CX)
        return Evidence(
            self.text_CE, self.asked_CZ, *named, self.near_CK, self.nearness_CK, self.starring_CS, self.stars_CS
        )


def contexts_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> Contexts:
    """Host arrays of all contexts of a split that the list names."""
    windows = make_windows(task.config, task.encoded[split], where, task.tokenizer)
    found, named_BE = evidence_at(task, split, where)
    named = (found.named, found.by_recommender)
    beside = (found.near, found.nearness, found.starring, found.stars)
    arrays: Any = (windows.tokens_BP, windows.mask_BP, found.text, named_BE, *named, found.asked, *beside)
    return Contexts(*arrays)


def after_rec(policy: Policy, contexts: Contexts) -> tuple[jax.Array, Tables, Wish]:
    """The hidden state `[C, D]` that has read `<|rec|>`, the tables, and the wish; inside jit."""
    tables, mask_CP = policy.tables(), contexts.mask_CP
    x_CPD = policy.embed(contexts.prompt_CP, tables)
    hidden_CD = policy.trunk(x_CPD, positions(mask_CP), causal(mask_CP))[:, -1]
    return hidden_CD, tables, policy.wish(contexts.evidence)
