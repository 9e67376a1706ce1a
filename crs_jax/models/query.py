"""What the context asks for, beside its tokens: added where items are chosen.

What is known of the context (`features/context.py`) joins the hidden state at every slot of the act as a `ItemQuery`: a
vector in the space of the items' frozen contents, whose dot product with an item is a bilinear form and a weighted sum
of plain matches (of text, genre, year) and its popularity, and numbers for single items. What it says of items is added
to what the hidden state says. Words' logits do not see it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.features.context import ContextFeatures
from crs_jax.models.transformer import dropout

PLACE = 3  # last entries of what is asked for: how far the dialogue is
MOST_NAMED = 16  # the latest items named that are looked at
KINDS = ("text", "asked", "named", "near", "people")
"""Kinds of evidence, each of which can be left out: to see what it is worth, or to do without it."""
MATCHES = ("text", "named", "asked attributes", "named attributes", "popularity", "near", "people")


class ItemQuery(NamedTuple):
    """What act slots of a context add.

    Attributes:
      vector: `[..., D]`, for the value function, which has no contents to match.
      content: `[..., E + F + 1]`, matched with the items' frozen contents.
      rows, gains: `[..., X + K + S]` numbers added to the logits of single items, -1 where there is none.
      state: `[..., PLACE + 2]` how far the dialogue is, and whether text and genres are known.
    """

    vector: jax.Array
    content: jax.Array
    rows: jax.Array
    gains: jax.Array
    state: jax.Array

    @property
    def beside(self) -> tuple[jax.Array, jax.Array]:
        """Rows and gains, as `Policy.item_logits` takes them."""
        return self.rows, self.gains


class Query(nnx.Module):
    """Features to item query.

    The vector is a projection of text and asked attributes plus an attention-weighted mean of the vectors of the items
    named (projections of their contents); weights depend on the item, on who named it and on how many were named since.
    The content part is that vector projected back, so that it matches contents by a bilinear form of rank D that no
    item's residual disturbs. `hidden_kernel` projects hidden states of act slots onto contents too; it starts at zero.
    To the content part are added direct matches: text and named items by cosine, asked and named genres and years
    through two small matrices, popularity. Items named before move by one learned number, those that others named
    together with them in proportion to their nearness, those with people who were named by how many of these are in
    them. Each kind of match is scaled by a gate that knows how far the talk is and what is known.

    Args:
      embedding: E.
      attributes: F.
      genres: the first attributes; the others are year bins in order.
      asked: Z; its first entries are genres asked for, in the order of the attributes.
      width: D.
      leave_out: of `KINDS`, what is treated as if it were not known.
    """

    def __init__(
        self,
        embedding: int,
        attributes: int,
        genres: int,
        asked: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        leave_out: tuple[str, ...] = (),
    ):
        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.attributes, self.genres, self.leave_out = attributes, genres, leave_out
        self.text_kernel, self.asked_kernel = normal(embedding, width), normal(asked, width)
        self.match_kernel = nnx.Param(0.05 * jax.random.normal(rngs.params(), (width, embedding + attributes + 1)))
        self.named_kernel = nnx.Param(0.1 * jnp.eye(width) + 0.02 * jax.random.normal(rngs.params(), (width, width)))
        self.role_scale = nnx.Param(jnp.zeros((2, width)))
        self.attention_kernel = normal(width)
        self.attention_bias = nnx.Param(jnp.zeros(2))
        self.attention_age = nnx.Param(-0.1 * jnp.arange(MOST_NAMED, dtype=jnp.float32))
        self.named_gain = nnx.Param(jnp.zeros(()))
        self.hidden_kernel = nnx.Param(jnp.zeros((width, embedding + attributes + 1)))
        self.gain = nnx.Param(jnp.array([2.5, 2.5, 1.0, 1.0, 0.7, 1.0, 0.5]))  # as in MATCHES
        self.state_width = min(asked, PLACE) + 2
        self.gate = nnx.Param(jnp.zeros((PLACE + 2, len(MATCHES))))
        years = np.arange(attributes - genres)
        by_asked, by_named = np.zeros((asked, attributes)), np.zeros((attributes, attributes))
        by_asked[np.arange(genres), np.arange(genres)] = 2.0
        by_named[np.arange(genres), np.arange(genres)] = 2.0
        by_named[genres:, genres:] = -0.1 * np.abs(years[:, None] - years[None])
        self.asked_match = nnx.Param(jnp.asarray(by_asked, jnp.float32))
        self.named_match = nnx.Param(jnp.asarray(by_named, jnp.float32))

    def __call__(
        self,
        features: ContextFeatures,
        content_NE: jax.Array,
        key: jax.Array | None = None,
        rate: float = 0.0,
    ) -> ItemQuery:
        """The item query, float32; popularity alone where nothing is known.

        Args:
          features: of the contexts.
          content_NE: frozen contents, `[padded N, E + F + 1]`.
          key: where given, the vector has dropout of the `rate`, text a third of it, and named items are left out with
            two thirds of it.
        """
        text, asked = features.text.astype(jnp.float32), features.asked.astype(jnp.float32)
        nearness, stars = features.nearness.astype(jnp.float32), features.people_matches.astype(jnp.float32)
        if "text" in self.leave_out:
            text = jnp.zeros_like(text)
        if "asked" in self.leave_out:  # how far the talk is stays
            asked = jnp.where(jnp.arange(asked.shape[-1]) < asked.shape[-1] - PLACE, 0.0, asked)
        if "near" in self.leave_out:
            nearness = jnp.zeros_like(nearness)
        if "people" in self.leave_out:
            stars = jnp.zeros_like(stars)
        rows, role = features.named[..., :MOST_NAMED], features.by_recommender[..., :MOST_NAMED].astype(jnp.int32)
        there = (rows >= 0) & ("named" not in self.leave_out)
        if key is not None:
            text = dropout(text, rate / 3, jax.random.fold_in(key, 2))
            kept = jax.random.bernoulli(jax.random.fold_in(key, 0), 1.0 - rate / 1.5, rows.shape)
            there = there & kept
        rows, share = jnp.maximum(rows, 0), there / jnp.maximum(there.sum(-1, keepdims=True), 1)
        contents = content_NE[rows].astype(jnp.float32)
        vectors = jnp.einsum("...E,DE->...D", contents, self.match_kernel[...])
        weight = vectors @ self.attention_kernel[...] + self.attention_bias[...][role]
        weight = weight + self.attention_age[...][: rows.shape[-1]]
        weight = jax.nn.softmax(jnp.where(there, weight, -1e9), -1) * there
        vectors = vectors * (1.0 + self.role_scale[...][role])
        vector = jnp.einsum("...X,...XD->...D", weight, vectors) @ self.named_kernel[...]
        vector = 2.0 * vector + text @ self.text_kernel[...] + asked @ self.asked_kernel[...]
        if key is not None:
            vector = dropout(vector, rate, jax.random.fold_in(key, 1))

        mean = jnp.einsum("...X,...XE->...E", share, contents)
        E = text.shape[-1]
        known = [jnp.any(part != 0, -1, keepdims=True) for part in (text, asked[..., : self.genres])]
        state = jnp.concatenate([asked[..., -PLACE:], *(k.astype(jnp.float32) for k in known)], -1)
        gain = self.gain[...] * jnp.exp(jnp.einsum("...S,SK->...K", state, self.gate[...][: state.shape[-1]]))
        by_text, by_named, by_asked, by_attributes, by_popularity, by_near, by_people = jnp.split(
            gain, len(MATCHES), -1
        )
        attributes = by_asked * (asked @ self.asked_match[...])
        attributes = attributes + by_attributes * (mean[..., E : E + self.attributes] @ self.named_match[...])
        content = jnp.concatenate([by_text * text + by_named * mean[..., :E], attributes, by_popularity], -1)
        content = content + vector @ self.match_kernel[...]
        again = jnp.broadcast_to(self.named_gain[...], features.named.shape)
        gains = jnp.concatenate([again, by_near * nearness, by_people * stars], -1)
        rows = jnp.concatenate([features.named, features.neighbours, features.with_people], -1)
        return ItemQuery(vector, content, rows, gains, state)


def ablated(params: dict[str, Any], leave_out: tuple[str, ...]) -> dict[str, Any]:
    """Parameters of a `Query` that leaves nothing out and says the same as one that leaves those kinds out.

    What multiplies the features left out starts at zero, where it has a gradient; how far the talk is stays known.
    """
    out = dict(params)
    silent = {"text": ("text",), "asked": (), "named": ("named", "named attributes")}
    silent |= {"near": ("near",), "people": ("people",)}
    for kind in leave_out:
        for match in silent[kind]:
            out["gain"] = out["gain"].at[MATCHES.index(match)].set(0.0)
    if "text" in leave_out:
        out["text_kernel"] = jnp.zeros_like(out["text_kernel"])
        out["gate"] = out["gate"].at[3].set(0.0)  # whether anything was said
    if "asked" in leave_out:
        for name in ("asked_kernel", "asked_match"):
            out[name] = out[name].at[:-PLACE].set(0.0)
        out["gate"] = out["gate"].at[4].set(0.0)  # whether a genre is asked for
    if "named" in leave_out:
        out["named_kernel"] = jnp.zeros_like(out["named_kernel"])
    return out
