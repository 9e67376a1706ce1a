"""Features of the contexts of a split: computed once, and looked up by dialogue and turn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crs_jax.features.context import ROWS, ContextFeatures, context_vectors, named_rows
from crs_jax.inputs.task import Task, log_popularity
from crs_jax.models.items import contents
from crs_jax.models.match_features import MATCH_FEATURES, match_features
from crs_jax.signals.relevance import new_items


def features_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> ContextFeatures:
    """Host arrays `[len(where), ...]` of the contexts before the given (dialogue, turn).

    They are taken from the split's own where these were computed and hold them all.
    """
    known = task.computed.get(split)
    if known is not None and known.has(where):
        return known.at(*np.array(where, np.int64).reshape(-1, 2).T)
    return made_at(task, split, where)


def made_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> ContextFeatures:
    """As `features_at`, computed."""
    dialogues, catalogue = task.dialogues(split), task.corpus.catalogue
    vectors = context_vectors(dialogues, where, catalogue, task.contrast_NE, task.embed, task.config.data.window)
    return ContextFeatures(
        vectors["text_BE"], task.attributes.asked(dialogues, where), *named_rows(dialogues, where, catalogue),
        *task.cooccurrence.neighbours(dialogues, where), *task.people.matches(dialogues, where), vectors["named_BE"],
    )  # fmt: skip


def of_split(task: Task, split: str) -> SplitFeatures:
    """Of all replies of a split; the same object each time."""
    if split not in task.computed:
        task.computed[split] = SplitFeatures(task, split)
    return task.computed[split]


class SplitFeatures:
    """Of all replies of a split; zero where a reply has no context."""

    def __init__(self, task: Task, split: str):
        where = task.replies(split)
        found = made_at(task, split, where)
        padded = {
            name: np.pad(a, ((1, 0), (0, 0)), constant_values=-1 if name in ROWS else 0)
            for name, a in found._asdict().items()
        }
        self._features = ContextFeatures(**padded)
        longest = max((len(dialogue.turns) for dialogue in task.dialogues(split)), default=0)
        self._row_DT = np.zeros((len(task.dialogues(split)), longest), np.int32)
        self._act_BM = np.full((len(where) + 1, task.config.data.act_items), -1, np.int32)
        for row, (d, t) in enumerate(where, 1):
            self._row_DT[d, t] = row
            items = task.corpus.catalogue.rows(task.dialogues(split)[d].turns[t].distinct_items)
            items = items[: self._act_BM.shape[1]]
            self._act_BM[row, : len(items)] = items
        self._task = task

    def has(self, where: Sequence[tuple[int, int]]) -> bool:
        """Whether all of these are replies with a context."""
        height, width = self._row_DT.shape
        return all(d < height and t < width and self._row_DT[d, t] > 0 for d, t in where)

    def at(self, dialogue: np.ndarray, turn: np.ndarray) -> ContextFeatures:
        """Host arrays of the replies at the given dialogues and turns."""
        row = self._row_DT[dialogue, turn]
        return ContextFeatures(*(a[row] for a in self._features))

    def matches(self, dialogue: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """`match_features` `[..., len(MATCH_FEATURES)]` of what the humans newly proposed there."""
        return self._own_matches[self._row_DT[dialogue, turn]]

    def matches_of(self, dialogue: np.ndarray, turn: np.ndarray, act_BM: np.ndarray) -> np.ndarray:
        """`match_features` `[B, len(MATCH_FEATURES)]` of other acts `[B, M]` there."""
        return self._matches(self.at(dialogue, turn), act_BM)

    @functools.cached_property
    def _own_matches(self) -> np.ndarray:
        return self._matches(self._features, self._act_BM)

    @functools.cached_property
    def _content_NW(self) -> jax.Array:
        task = self._task
        return jnp.asarray(contents(task.content_NE, task.attributes.item_NF, log_popularity(task)))

    def _matches(self, features: ContextFeatures, act_BM: np.ndarray) -> np.ndarray:
        out, genres = np.zeros((len(act_BM), len(MATCH_FEATURES)), np.float32), len(self._task.attributes.genres)
        for start in range(0, len(act_BM), 1024):  # bounds the gather of the items named
            some = slice(start, start + 1024)
            here, act = jax.tree.map(lambda a, some=some: jnp.asarray(a[some]), (features, act_BM))
            out[some] = _match_features(here, act, self._content_NW, genres)
        return out


@functools.partial(jax.jit, static_argnames="genres")
def _match_features(features: Any, act_BM: jax.Array, content_NW: jax.Array, genres: int) -> jax.Array:
    return match_features(features, new_items(act_BM, features.named), content_NW, genres)
