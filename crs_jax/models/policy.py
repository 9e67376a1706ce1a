"""The recommender: GPT-2's trunk with a vocabulary of words and items, under the grammar of act and words.

A reply is `<|recommender|> <|rec|> item* <|say|> words <|end|>`. In the act only items not yet proposed or `<|say|>`
can follow (only `<|say|>` once M items stand); after it BPE words, `<|end|>` and the act's own items. The softmax
factors accordingly: `act_logits` over items and `<|say|>`, `word_logits` over words and M pointers to the act's items.
Each gives a pair (main, extra): the padded table's logits and the few logits beside it. At act slots the hidden state
is joined by the context's wish (`models/query.py`), which items are matched with too.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from crs_jax.models.gpt2 import GPT2Config, Trunk
from crs_jax.models.items import ItemTower, padded
from crs_jax.models.products import float32_product
from crs_jax.models.query import Evidence, Query, Wish
from crs_jax.sharding import by_batch, by_rows

MASKED = -1e9
Beside = tuple[jax.Array, jax.Array]


def add_at(scores: jax.Array, rows: jax.Array, gains: jax.Array) -> jax.Array:
    """`scores` `[..., N]` with the `gains` `[..., Y]` added at the `rows` `[..., Y]` of the last axis; -1 is no row."""

    def add(scores_N: jax.Array, rows_Y: jax.Array, gains_Y: jax.Array) -> jax.Array:
        rows_Y = jnp.where(rows_Y < 0, len(scores_N), rows_Y)  # out of bounds, so dropped
        return scores_N.at[rows_Y].add(gains_Y, mode="drop")

    for _ in range(scores.ndim - 1):  # leading axes stay what they are, so that each device adds to its own rows
        add = jax.vmap(add)
    return add(scores, rows, gains)


def logits_of(hidden: jax.Array, table_ND: jax.Array) -> jax.Array:
    """Inner products `[..., N]` of hidden states `[..., D]` with a table's rows, float32."""
    lead = "abc"[: hidden.ndim - 1]
    return float32_product(f"{lead}D,ND->{lead}N", hidden, table_ND)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where words, controls and items stand among the token ids (see `data/tokenizer.py`).

    Attributes:
      num_words: V, BPE tokens, ids 0..V-1.
      item_offset: id of item row 0; the controls stand between the words and it.
      num_items: N.
      act_items: M, most items in one act.
      unused: word ids that no text has (GPT-2's `<|endoftext|>`); never sampled.
    """

    num_words: int
    item_offset: int
    num_items: int
    act_items: int
    pad: int
    seeker: int
    recommender: int
    rec: int
    say: int
    end: int
    unused: tuple[int, ...] = ()


class Logits(NamedTuple):
    """Logits over a padded table (`main`) and over what stands beside it (`extra`); masked entries are `MASKED`."""

    main: jax.Array
    extra: jax.Array


class Policy(nnx.Module):
    """Words table, item tower, query and trunk.

    Args:
      config: the trunk's shape.
      layout: token ids.
      content_NE: frozen description embeddings of the catalogue.
      log_popularity_N: of the items, or None.
      facets_NF: frozen facets of the items, genres first, or None.
      genres: how many of the facets are genres.
      asked: Z, width of what a context's facets ask for.
      scale: standard deviation of first word and item vectors.
      hidden_gain: first weight of what hidden states say of items, beside the evidence.
      leave_out: kinds of evidence to do without (`models/query.py`).
      pad_to: tables are padded to a multiple of this (128 x the tensor axis).
    """

    def __init__(
        self,
        config: GPT2Config,
        layout: Layout,
        content_NE: np.ndarray,
        log_popularity_N: np.ndarray | None = None,
        facets_NF: np.ndarray | None = None,
        genres: int = 0,
        asked: int = 0,
        *,
        rngs: nnx.Rngs,
        pad_to: int = 128,
        scale: float = 0.02,
        hidden_gain: float = 1.0,
        leave_out: tuple[str, ...] = (),
    ):
        self.layout = layout
        self.word_rows = padded(layout.item_offset, pad_to)
        self.words = nnx.Param(scale * jax.random.normal(rngs.params(), (self.word_rows, config.width)))
        self.items = ItemTower(
            content_NE, facets_NF, log_popularity_N, config.width, rngs=rngs, pad_to=pad_to, scale=scale
        )
        facets = 0 if facets_NF is None else facets_NF.shape[1]
        self.query = Query(
            content_NE.shape[1], facets, genres, asked, config.width,
            rngs=rngs, scale=scale, hidden_gain=hidden_gain, leave_out=leave_out,
        )  # fmt: skip
        self.trunk = Trunk(config, rngs=rngs)

    @property
    def dtype(self) -> str:
        """Of activations."""
        return self.trunk.config.dtype

    @property
    def width(self) -> int:
        """D."""
        return self.trunk.config.width

    def item_table(self) -> jax.Array:
        """Item vectors and, behind them, frozen contents, `[padded N, D + E]`; compute once a forward pass.

        In the activations' type.
        """
        table = by_rows(self.items.table().astype(self.dtype))
        return jnp.concatenate([table, self.items.content[...].astype(self.dtype)], -1)

    def word_table(self) -> jax.Array:
        """Word and control vectors `[padded V, D]` in the activations' type."""
        return by_rows(self.words[...].astype(self.dtype))

    def embed(self, tokens: jax.Array, items_NW: jax.Array) -> jax.Array:
        """Embeddings `[..., D]` of token ids; `items_NW` from `item_table`."""
        items_ND = items_NW[:, : self.width]
        offset = self.layout.item_offset
        word = by_batch(self.word_table()[jnp.minimum(tokens, offset - 1)])
        item = by_batch(items_ND[jnp.clip(tokens - offset, 0, items_ND.shape[0] - 1)])
        return jnp.where((tokens >= offset)[..., None], item, word)

    def wish(self, evidence: Evidence, key: jax.Array | None = None, rate: float = 0.0) -> Wish:
        """What contexts ask for (`Query`); a key for its dropout."""
        return self.query(evidence, self.items.content[...], key, rate)

    def acting(self, hidden: jax.Array, wish: Wish | None) -> jax.Array:
        """States of act slots, `[..., D + E]`: hidden `[..., D]` and what matches contents; None adds nothing."""
        if wish is None:
            return jnp.pad(hidden, [(0, 0)] * (hidden.ndim - 1) + [(0, self.items.content[...].shape[1])])
        content = wish.content.astype(hidden.dtype)
        return jnp.concatenate([hidden, jnp.broadcast_to(content, (*hidden.shape[:-1], content.shape[-1]))], -1)

    def item_logits(self, acting: jax.Array, items_NW: jax.Array, beside: Beside | None = None) -> jax.Array:
        """Logits `[..., padded N]` of all items, float32, before the act's mask; padded rows are masked.

        At the state of `<|rec|>` this is the ranking.

        Args:
          acting: `[..., D + E]`, from `acting`.
          items_NW: from `item_table`.
          beside: `rows` and `gains` of the wish, `[..., Y]` each.
        """

        def product(state: jax.Array, table: jax.Array) -> jax.Array:
            return by_batch(logits_of(by_batch(state), table), "tensor")

        D = self.width
        scores = self.query.hidden_gain[...] * product(acting[..., :D], items_NW[:, :D])
        scores = scores + product(acting[..., D:], lax.stop_gradient(items_NW[:, D:]))
        if beside is not None:
            scores = add_at(scores, *beside)
        real_N = jnp.arange(items_NW.shape[0]) < self.layout.num_items
        return jnp.where(real_N, scores + self.items.bias[...], MASKED)

    def act_logits(
        self, acting: jax.Array, items_NW: jax.Array, used_M: jax.Array, beside: Beside | None = None
    ) -> Logits:
        """Next token of an act: main `[..., padded N]` items, extra `[..., 1]` `<|say|>`.

        Args:
          acting: `[..., D + E]` at `<|rec|>` or at an item of the act, from `acting`.
          items_NW: from `item_table`.
          used_M: `[..., M]` rows proposed so far in this act, -1 where none.
          beside: as for `item_logits`.
        """
        main = self.item_logits(acting, items_NW, beside)
        rows_N = jnp.arange(main.shape[-1])
        used = jnp.zeros(main.shape, bool)
        for m in range(used_M.shape[-1]):
            used = used | (rows_N == used_M[..., m : m + 1])
        full = (used_M >= 0).all(-1, keepdims=True)
        main = jnp.where(used | full, MASKED, main)
        say = self.words[...][self.layout.say].astype(self.dtype)
        hidden = acting[..., : self.width]
        return Logits(main, jnp.einsum("...D,D->...", hidden, say, preferred_element_type=jnp.float32)[..., None])

    def word_logits(self, hidden: jax.Array, items_NW: jax.Array, own_M: jax.Array) -> Logits:
        """Next token of the words: main `[..., padded V]` words and `<|end|>`, extra `[..., M]` the act's own items.

        Args:
          hidden: `[..., D]` at `<|say|>` or after it.
          items_NW: from `item_table`.
          own_M: `[..., M]` rows of the act's items, -1 where none.
        """
        main = by_batch(logits_of(by_batch(hidden), self.word_table()), "tensor")
        ids_V = jnp.arange(main.shape[-1])
        legal_V = (ids_V < self.layout.num_words) | (ids_V == self.layout.end)
        for unused in self.layout.unused:
            legal_V = legal_V & (ids_V != unused)
        rows = jnp.maximum(own_M, 0)
        own_MD = items_NW[:, : self.width][rows]
        own = jnp.einsum("...D,...MD->...M", hidden, own_MD, preferred_element_type=jnp.float32)
        own = own + self.items.bias[...][rows]
        return Logits(jnp.where(legal_V, main, MASKED), jnp.where(own_M >= 0, own, MASKED))
