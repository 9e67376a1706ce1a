"""What a context says of items: one record of arrays, from the windows to the loss.

Half a million words teach a small language model little English and less about seven thousand films. What was said, as
a sentence embedding, the attributes that were asked for, the items named so far and by whom, items that others named
together with those, and items with people who were named know much. A policy reads them where items are chosen
(`models/query.py`), the reward model as match features (`models/match_features.py`), relevance as two vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Dialogue

DECAY = 0.8  # weight of an utterance, per utterance of age

Embed = Callable[[Sequence[str]], np.ndarray]


class ContextFeatures(NamedTuple):
    """Of contexts, leading axes theirs.

    Attributes:
      text: `[..., E]` unit or zero, what the seeker said in the window.
      asked: `[..., Z]` attributes asked for (`features/attributes.py`).
      named: `[..., X]` rows of items named so far, the latest first, -1 padded.
      by_recommender: `[..., X]` 1 where the recommender named it first, 0 where the seeker did.
      neighbours: `[..., K]` rows of items that others named together with those, -1 padded
        (`features/cooccurrence.py`).
      nearness: `[..., K]` how much, 0 where padded.
      with_people: `[..., S]` rows of items with people named so far, -1 padded (`features/people.py`).
      people_matches: `[..., S]` how many of those people, 0 where padded.
      named_mean: `[..., E]` unit or zero, the items named in the window; relevance alone reads it.
    """

    text: jax.Array | Any
    asked: jax.Array | Any
    named: jax.Array | Any
    by_recommender: jax.Array | Any
    neighbours: jax.Array | Any
    nearness: jax.Array | Any
    with_people: jax.Array | Any
    people_matches: jax.Array | Any
    named_mean: jax.Array | Any = None


ROWS = ("named", "neighbours", "with_people")
"""Fields that hold rows of items, padded with -1; the others are padded with 0."""


def context_vectors(
    dialogues: Sequence[Dialogue],
    where: Sequence[tuple[int, int]],
    catalogue: Catalogue,
    items_NE: np.ndarray,
    embed: Embed,
    window: int,
) -> dict[str, np.ndarray]:
    """What is asked for before each of the turns, as vectors.

    The context of turn t is the `window` utterances before it. What the seeker said is the mean embedding of their
    utterances there, an utterance `age` turns older than the newest in the window weighing `DECAY ** age`: a wish is
    refined as the talk goes on, and an old one still counts. What was named is the plain mean of the distinct items
    named there by either side. Both are scaled to unit length, and are zero where there is nothing to average.

    Args:
      where: (dialogue, turn) indices, B of them; the turn itself is not looked at and may be one past the last.
      items_NE: unit embeddings of the items' descriptions, rows as in the catalogue.
      embed: unit embeddings [n, E] of n texts; called once, with the distinct utterances needed.
      window: k, in utterances.

    Returns:
      {"text_BE", "named_BE"}, float32.
    """
    names, E = catalogue.names, items_NE.shape[1]
    said: dict[str, int] = {}
    texts_of: dict[tuple[int, int], int] = {}
    for d, t in where:
        for at in range(max(0, t - window), t):
            turn = dialogues[d].turns[at]
            if turn.role == SEEKER and (d, at) not in texts_of:
                texts_of[d, at] = said.setdefault(turn.render(names), len(said))
    vectors_UE = embed(list(said)) if said else np.zeros((0, E), np.float32)
    text_BE, named_BE = (np.zeros((len(where), E), np.float32) for _ in range(2))
    for b, (d, t) in enumerate(where):
        inside = range(max(0, t - window), t)
        for at in inside:
            if (d, at) in texts_of:
                text_BE[b] += DECAY ** (t - 1 - at) * vectors_UE[texts_of[d, at]]
        rows = dict.fromkeys(catalogue.rows(item for at in inside for item in dialogues[d].turns[at].items))
        if rows:
            named_BE[b] = items_NE[list(rows)].mean(axis=0)
    return {"text_BE": _unit(text_BE), "named_BE": _unit(named_BE)}


def named_rows(
    dialogues: Sequence[Dialogue], where: Sequence[tuple[int, int]], catalogue: Catalogue, most: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """The items named before each turn, the `most` latest ones, the latest first.

    Returns:
      Their rows, int32 `[B, X]`, -1 padded; and int32 `[B, X]`, 1 where the recommender was the first to name it.
    """
    rows_BX, by_recommender_BX = np.full((len(where), most), -1, np.int32), np.zeros((len(where), most), np.int32)
    for b, (d, t) in enumerate(where):
        before = dialogues[d].turns[:t]
        items = list(dict.fromkeys(item for turn in reversed(before) for item in reversed(turn.items)))[:most]
        first = {item: turn.role for turn in reversed(before) for item in turn.items}
        rows_BX[b, : len(items)] = catalogue.rows(items)
        by_recommender_BX[b, : len(items)] = [first[item] == RECOMMENDER for item in items]
    return rows_BX, by_recommender_BX


def _unit(x_BE: np.ndarray) -> np.ndarray:
    norm_B1 = np.linalg.norm(x_BE, axis=-1, keepdims=True)
    return np.where(norm_B1 > 1e-6, x_BE / np.maximum(norm_B1, 1e-6), 0.0).astype(np.float32)
