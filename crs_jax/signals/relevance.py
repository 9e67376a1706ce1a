"""Relevance: how well a proposal fits what the seeker asked for, a known function of context and act.

Cosines of frozen sentence embeddings, so nothing is learned and nothing can be gamed by the words of a reply: the
relevance of an act depends on its items alone. All vectors are unit, so a cosine is a dot product. Items' vectors come
less the catalogue's mean (`Task.contrast_NE`): without that a few that resemble all descriptions fit whatever is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import RECOMMENDER, Dialogue
from crs_jax.features.context import Embed, context_vectors, named_rows


def utterance_texts(dialogues: Sequence[Dialogue], catalogue: Catalogue) -> list[list[str]]:
    """What each turn says, mentions written as titles with year: the text the sentence encoder sees."""
    return [[turn.render(catalogue.names) for turn in dialogue.turns] for dialogue in dialogues]


def new_items(act_BM: jax.Array, named_BX: jax.Array) -> jax.Array:
    """Acts without what was named before (-1 there): proposing it again is no proposal, and fits too easily."""
    return jnp.where((act_BM[:, :, None] == named_BX[:, None, :]).any(-1), -1, act_BM)


def query(text: jax.Array, named: jax.Array) -> jax.Array:
    """The vector whose dot product with an item is its relevance: the mean of the two parts that are there.

    Args:
      text, named: [..., E], unit or zero; what is zero is left out of the mean. Zero where both are.
    """
    parts = [jnp.any(part != 0, axis=-1, keepdims=True).astype(jnp.float32) for part in (text, named)]
    return (text + named) / jnp.maximum(parts[0] + parts[1], 1.0)


def relevance_N(text_BE: jax.Array, named_BE: jax.Array, items_NE: jax.Array) -> jax.Array:
    """Relevance of every item to every context, float32 [B, N], in [-1, 1]; works inside jit.

    The mean of cos(text, item) and cos(named, item); of one alone where the other is missing; 0 for a context without
    both, so that it prefers nothing.
    """
    return jnp.einsum("BE,NE->BN", query(text_BE, named_BE), items_NE, precision="highest")


def relevance(act_BM: jax.Array, text_BE: jax.Array, named_BE: jax.Array, items_NE: jax.Array) -> jax.Array:
    """Relevance of acts, float32 [B]: the mean over the items proposed; works inside jit.

    Args:
      act_BM: rows of the items proposed, -1 where there is none, in any order.

    Returns:
      NaN for an empty act: what proposes nothing is neither relevant nor irrelevant.
    """
    mask_BM = act_BM >= 0
    score_BM = jnp.einsum("BME,BE->BM", items_NE[jnp.maximum(act_BM, 0)], query(text_BE, named_BE), precision="highest")
    count_B = jnp.sum(mask_BM, axis=-1)
    mean_B = jnp.sum(jnp.where(mask_BM, score_BM, 0.0), axis=-1) / jnp.maximum(count_B, 1)
    return jnp.where(count_B > 0, mean_B, jnp.nan)


def turn_relevance(
    dialogues: Sequence[Dialogue], catalogue: Catalogue, items_NE: np.ndarray, embed: Embed, window: int
) -> list[np.ndarray]:
    """Relevance of what people proposed: one float32 array a dialogue, a value a turn.

    Defined for recommender turns that name an item nobody named before; NaN elsewhere.
    """
    turns = [(d, t) for d, dialogue in enumerate(dialogues) for t in range(len(dialogue.turns))]
    where = [(d, t) for d, t in turns if dialogues[d].turns[t].role == RECOMMENDER and dialogues[d].turns[t].items]
    out = [np.full(len(dialogue.turns), np.nan, np.float32) for dialogue in dialogues]
    if not where:
        return out
    vectors = context_vectors(dialogues, where, catalogue, items_NE, embed, window)
    acts = [catalogue.rows(dialogues[d].turns[t].distinct_items) for d, t in where]
    act_BM = np.full((len(acts), max(map(len, acts))), -1, np.int32)
    for act_M, rows in zip(act_BM, acts, strict=True):
        act_M[: len(rows)] = rows
    act_BM = np.asarray(new_items(jnp.asarray(act_BM), jnp.asarray(named_rows(dialogues, where, catalogue)[0])))
    for start in range(0, len(where), 4096):  # bounds the gather of [B, M, E]
        part = slice(start, start + 4096)
        act, text, named = (jnp.asarray(x[part]) for x in (act_BM, vectors["text_BE"], vectors["named_BE"]))
        score_B = relevance(act, text, named, jnp.asarray(items_NE))
        for (d, t), score in zip(where[part], np.asarray(score_B), strict=True):
            out[d][t] = score
    return out
