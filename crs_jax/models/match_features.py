"""How the items of an act fit what the context asks for: the few numbers that a reward can be read off.

A reaction to a proposal depends on the item less than on the place in the talk, and a trunk that is fitted on a few
thousand of them learns the place alone. These numbers carry what is known of items and contexts (`models/query.py`) in
a form that a linear head can use for items it has never seen proposed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crs_jax.features.context import ContextFeatures
from crs_jax.models.query import MOST_NAMED

MATCH_FEATURES = (
    "text",
    "named",
    "genres asked",
    "genres named",
    "years named",
    "popularity",
    "near",
    "people",
    "proposes",
)


def match_features(features: ContextFeatures, act_BM: jax.Array, content_NW: jax.Array, genres: int) -> jax.Array:
    """`[B, len(MATCH_FEATURES)]` float32, means over the items of each act; zeros for an act without any.

    By item: cosine with what the seeker said and dot product with the mean of the items named (contents centred);
    genres in common with those asked for and with those of the items named; share of the items named from the same
    years; log popularity; how much others named it together with those; how many people named are in it; and 1.

    Args:
      features: of each reply's context, leading axis B.
      act_BM: rows of the items that are proposed and were not named before, -1 where there is none.
      content_NW: frozen contents, `[.., E + attributes + 1]` (`models/items.py`).
      genres: how many of the attributes are genres.
    """
    there_BM = act_BM >= 0
    named_BX = features.named[:, :MOST_NAMED]
    known_BX1 = (named_BX >= 0)[..., None]
    mean_BW = (content_NW[jnp.maximum(named_BX, 0)] * known_BX1).sum(1) / jnp.maximum(known_BX1.sum(1), 1)
    item_BMW = content_NW[jnp.maximum(act_BM, 0)].astype(jnp.float32)
    E = features.text.shape[-1]
    parts = (slice(0, E), slice(E, E + genres), slice(E + genres, -1))

    def match(part: slice, wish_BW: jax.Array) -> jax.Array:
        return jnp.einsum("BMW,BW->BM", item_BMW[..., part], wish_BW.astype(jnp.float32), precision="highest")

    def beside(rows_BK: jax.Array, value_BK: jax.Array) -> jax.Array:
        same_BMK = (act_BM[:, :, None] == rows_BK[:, None]) & (rows_BK >= 0)[:, None]
        return (same_BMK * value_BK[:, None]).sum(-1)

    text, kinds, years = parts
    columns = (
        match(text, features.text),
        match(text, mean_BW[:, text]),
        match(kinds, features.asked[:, :genres]),
        match(kinds, mean_BW[:, kinds]),
        match(years, mean_BW[:, years]),
        item_BMW[..., -1],
        beside(features.neighbours, features.nearness),
        beside(features.with_people, features.people_matches),
        jnp.ones(act_BM.shape),
    )
    fit_BMF = jnp.stack([column.astype(jnp.float32) for column in columns], -1) * there_BM[..., None]
    return fit_BMF.sum(1) / jnp.maximum(there_BM.sum(1), 1)[:, None]
