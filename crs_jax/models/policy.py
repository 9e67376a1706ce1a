"""The recommender: a decoder's trunk with a vocabulary of words and items, under the grammar of act and words.

A reply is `<|recommender|> <|rec|> item* <|say|> words <|end|>`. In the act only items not yet proposed or `<|say|>`
can follow (only `<|say|>` once M items stand); after it BPE words, `<|end|>` and the act's own items. The softmax
factors accordingly: `act_logits` over items and `<|say|>`, `word_logits` over words, M pointers to the act's items and
`<|end|>`. What stands beside a table, `<|say|>`, pointers and `<|end|>`, has log-odds of its own against the table's
whole mass (`models/decisions.py`), so that what word logits or item logits have in common does not matter.

Items are matched with what the context asks for (`models/query.py`) and with the hidden state at the act's slot. The
state's part starts at zero: the ranking before the first supervised step is that of the context alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from crs_jax.features.context import ContextFeatures
from crs_jax.models.decisions import BaseRates, Decisions, normalised
from crs_jax.models.decoder import DecoderConfig
from crs_jax.models.items import ItemTower, padded
from crs_jax.models.layout import Layout
from crs_jax.models.products import logits_of
from crs_jax.models.query import ItemQuery, Query
from crs_jax.models.transformer import dropout
from crs_jax.runtime.sharding import by_batch, by_rows, whole

MASKED = -1e9
SURE = 1e9  # log-odds of `<|say|>` where no item can follow
Beside = tuple[jax.Array, jax.Array]


def add_at(scores: jax.Array, rows: jax.Array, gains: jax.Array) -> jax.Array:
    """`scores` `[..., N]` with the `gains` `[..., Y]` added at the `rows` `[..., Y]` of the last axis; -1 is no row."""

    def add(scores_N: jax.Array, rows_Y: jax.Array, gains_Y: jax.Array) -> jax.Array:
        rows_Y = jnp.where(rows_Y < 0, len(scores_N), rows_Y)  # out of bounds, so dropped
        return scores_N.at[rows_Y].add(gains_Y, mode="drop")

    for _ in range(scores.ndim - 1):  # leading axes stay what they are, so that each device adds to its own rows
        add = jax.vmap(add)
    return add(scores, rows, gains)


class Logits(NamedTuple):
    """Logits of one next token, float32; masked entries are `MASKED`.

    Attributes:
      main: `[..., rows]` log-probabilities over a padded table, given that one of its rows is drawn.
      extra: `[..., X]` log-odds of what stands beside the table against all of its rows together.
    """

    main: jax.Array
    extra: jax.Array


class Tables(NamedTuple):
    """What a forward pass reads of words and items, in the activations' type; computed once a pass.

    Attributes:
      words_VD: `[padded V, D]` word vectors less their mean, for input and, where the decoder is tied, output.
      mean_D: that mean, float32. All input embeddings have it; no logit does, since a softmax is blind to it.
      items_ND: `[padded N, D]` what is learnt of single items.
      content_NE: `[padded N, E]` frozen contents.
      untied_VD: output vectors of words less their mean, where they are others.
    """

    words_VD: jax.Array
    mean_D: jax.Array
    items_ND: jax.Array
    content_NE: jax.Array
    untied_VD: jax.Array | None

    @property
    def output_VD(self) -> jax.Array:
        """What words are predicted by."""
        return self.words_VD if self.untied_VD is None else self.untied_VD


class SlateState(NamedTuple):
    """What slots of the act are scored from.

    Attributes:
      hidden: `[..., D]` normalised, matched with what is learnt of single items.
      content: `[..., E]`, matched with their contents.
      known: `ItemQuery.state` and the normalised `ItemQuery.vector`, None without a query; decisions read them and do
        not move them.
    """

    hidden: jax.Array
    content: jax.Array
    known: jax.Array | None


class Policy(nnx.Module):
    """Word, control and item tables, query, decisions and trunk.

    Args:
      config: the decoder.
      layout: token ids.
      content_NE: frozen description embeddings of the catalogue.
      log_popularity_N: of the items, or None.
      attributes_NF: frozen attributes of the items, genres first, or None.
      genres: how many of the attributes are genres.
      asked: Z, width of what a context's attributes ask for.
      rates: the corpus' rates of the kinds of tokens (`models/decisions.py`); None: even.
      scale: standard deviation of first word vectors.
      leave_out: kinds of evidence to do without (`models/query.py`).
      pad_to: tables are padded to a multiple of this (128 x the tensor axis).
    """

    def __init__(
        self,
        config: DecoderConfig,
        layout: Layout,
        content_NE: np.ndarray,
        log_popularity_N: np.ndarray | None = None,
        attributes_NF: np.ndarray | None = None,
        genres: int = 0,
        asked: int = 0,
        rates: BaseRates | None = None,
        *,
        rngs: nnx.Rngs,
        pad_to: int = 128,
        scale: float = 0.02,
        leave_out: tuple[str, ...] = (),
    ):
        self.layout = layout

        def word_table() -> nnx.Param:
            table_VD = scale * jax.random.normal(rngs.params(), (padded(layout.num_words, pad_to), config.width))
            return nnx.Param(table_VD.at[layout.num_words :].set(0.0))  # padding, which nothing moves

        self.words = word_table()
        self.output = None if config.tied else word_table()
        controls = layout.item_offset - layout.num_words
        self.controls = nnx.Param(scale * jax.random.normal(rngs.params(), (controls, config.width)))
        self.items = ItemTower(
            content_NE, attributes_NF, log_popularity_N, config.width, rngs=rngs, pad_to=pad_to, scale=scale
        )
        attributes = 0 if attributes_NF is None else attributes_NF.shape[1]
        self.query = Query(content_NE.shape[1], attributes, genres, asked, config.width, rngs=rngs, leave_out=leave_out)
        self.decisions = Decisions(config.width, self.query.state_width + config.width, layout.act_items, rates)
        self.trunk = config.trunk(rngs)

    @property
    def dtype(self) -> str:
        """Of activations."""
        return self.trunk.config.dtype

    @property
    def width(self) -> int:
        """D."""
        return self.trunk.config.width

    def tables(self) -> Tables:
        """Compute once a forward pass."""
        words_VD, mean_D = self.centred(self.words[...])
        return Tables(
            words_VD,
            mean_D,
            by_rows(self.items.residual[...].astype(self.dtype)),
            lax.stop_gradient(self.items.content[...].astype(self.dtype)),
            None if self.output is None else self.centred(self.output[...])[0],
        )

    def centred(self, table_VD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A table of words less their mean, in the activations' type, and that mean, float32."""
        real = self.layout.num_words
        mean_D = jnp.where(jnp.arange(len(table_VD))[:, None] < real, table_VD, 0.0).sum(0) / real
        return by_rows((table_VD - mean_D).astype(self.dtype)), whole(mean_D[None])[0]

    def embed(self, tokens: jax.Array, tables: Tables) -> jax.Array:
        """Embeddings `[..., D]` of token ids, float32: words as they are; controls and items around the mean word."""
        layout = self.layout
        word = by_batch(tables.words_VD[jnp.minimum(tokens, layout.num_words - 1)])
        controls = whole(self.controls[...].astype(self.dtype))
        control = controls[jnp.clip(tokens - layout.num_words, 0, len(controls) - 1)]
        row = jnp.clip(tokens - layout.item_offset, 0, len(tables.items_ND) - 1)
        item = by_batch(tables.items_ND[row])
        item = item + by_batch(tables.content_NE[row]) @ self.items.projection[...].astype(self.dtype)
        new = jnp.where((tokens >= layout.item_offset)[..., None], item, control)
        is_word = (tokens < layout.num_words)[..., None]
        # A word's own mean has a gradient, so that its embedding's is the table's; what is new only starts from it.
        mean = jnp.where(is_word, tables.mean_D, lax.stop_gradient(tables.mean_D))
        return jnp.where(is_word, word, new) + mean

    def item_query(self, features: ContextFeatures, key: jax.Array | None = None, rate: float = 0.0) -> ItemQuery:
        """What contexts ask for (`Query`); a key for its dropout."""
        return self.query(features, self.items.content[...], key, rate)

    def acting(
        self, hidden: jax.Array, item_query: ItemQuery | None, key: jax.Array | None = None, rate: float = 0.0
    ) -> SlateState:
        """States of act slots from hidden states `[..., D]`.

        Args:
          hidden: of the trunk.
          item_query: of the context; None adds nothing.
          key, rate: of dropout of the normalised states.
        """
        state = dropout(normalised(hidden), rate, key)
        content = self._content_query(state)
        if item_query is not None:
            content = content + item_query.content.astype(state.dtype)
        known = None if item_query is None else jnp.concatenate([item_query.state, normalised(item_query.vector)], -1)
        return SlateState(state, content, known if known is None else lax.stop_gradient(known))

    def _content_query(self, state: jax.Array) -> jax.Array:
        """What normalised hidden states `[..., D]` say of items' contents, `[..., E]`; zero at the start."""
        return state @ self.query.hidden_kernel[...].astype(state.dtype)

    def item_logits(self, acting: SlateState, tables: Tables, beside: Beside | None = None) -> jax.Array:
        """Logits `[..., padded N]` of all items, float32, before the act's mask; padded rows are masked.

        At the state of `<|rec|>` this is the ranking.

        Args:
          acting: from `acting`.
          tables: from `tables`.
          beside: `rows` and `gains` of the item_query, `[..., Y]` each.
        """

        def product(state: jax.Array, table: jax.Array) -> jax.Array:
            return by_batch(logits_of(by_batch(state), table), "tensor")

        scores = product(acting.hidden, tables.items_ND) + product(acting.content, tables.content_NE)
        if beside is not None:
            scores = add_at(scores, *beside)
        real_N = jnp.arange(len(tables.items_ND)) < self.layout.num_items
        return jnp.where(real_N, scores + self.items.bias[...], MASKED)

    def act_logits(
        self,
        acting: SlateState,
        tables: Tables,
        used_M: jax.Array,
        beside: Beside | None = None,
        temperature: float | jax.Array = 1.0,
    ) -> Logits:
        """Next token of an act: main `[..., padded N]` items, extra `[..., 1]` `<|say|>`.

        Args:
          acting: at `<|rec|>` or at an item of the act, from `acting`.
          tables: from `tables`.
          used_M: `[..., M]` rows proposed so far in this act, -1 where none.
          beside: as for `item_logits`.
          temperature: divides the items' logits and the log-odds of `<|say|>`.
        """
        main = self.item_logits(acting, tables, beside)
        rows_N = jnp.arange(main.shape[-1])
        used = jnp.zeros(main.shape, bool)
        for m in range(used_M.shape[-1]):
            used = used | (rows_N == used_M[..., m : m + 1])
        main = given_drawn(jnp.where(used, MASKED, main), temperature)
        count = (used_M >= 0).sum(-1)
        say = self.decisions.say(acting.hidden, acting.known, count) / temperature
        alone = count == min(used_M.shape[-1], self.layout.num_items)  # nothing else is left
        return Logits(main, jnp.where(alone, SURE, say)[..., None])

    def word_logits(
        self, hidden: jax.Array, tables: Tables, own_M: jax.Array, temperature: float | jax.Array = 1.0
    ) -> Logits:
        """Next token of the words: main `[..., padded V]` words, extra `[..., M + 1]` the act's items and `<|end|>`.

        Args:
          hidden: `[..., D]` at `<|say|>` or after it.
          tables: from `tables`.
          own_M: `[..., M]` rows of the act's items, -1 where none.
          temperature: divides the logits of words and of own items, and the log-odds of the kinds.
        """
        main = by_batch(logits_of(by_batch(hidden), tables.output_VD), "tensor")
        ids_V = jnp.arange(main.shape[-1])
        legal_V = ids_V < self.layout.num_words
        for unused in self.layout.unused:
            legal_V = legal_V & (ids_V != unused)
        state = normalised(hidden)
        row_M, own = jnp.maximum(own_M, 0), jnp.float32(0)
        for query, table in ((state, tables.items_ND), (self._content_query(state), tables.content_NE)):
            own = own + jnp.einsum("...D,...MD->...M", query, table[row_M], preferred_element_type=jnp.float32)
        there = own_M >= 0
        own = given_drawn(jnp.where(there, own, MASKED), temperature)
        end, any_own = self.decisions.after(state, there.any(-1))
        own = jnp.where(there, own + any_own[..., None] / temperature, MASKED)
        extra = jnp.concatenate([own, end[..., None] / temperature], -1)
        return Logits(given_drawn(jnp.where(legal_V, main, MASKED), temperature), extra)


def given_drawn(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Log-probabilities over the last axis at a temperature; masked entries stay masked."""
    scaled = logits / temperature
    logp = scaled - jax.nn.logsumexp(scaled, -1, keepdims=True)
    return jnp.where(logits == MASKED, MASKED, logp)
