"""What kind of token comes next, as log-odds beside two softmaxes: propose on or speak; a word, an item or the end.

A pretrained model's word logits share a large offset, made by a component that all its word embeddings have in common.
A new token whose logit stood beside them would never be drawn, or always. So each kind has log-odds of its own against
the mass of the items (in the slate) or of the words (after it), which no offset reaches, and which start at the rates
of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class BaseRates(NamedTuple):
    """Log-odds of the kinds of tokens in the recommenders' replies of a corpus, nats.

    Attributes:
      say_M: `<|say|>` against all items, where 0 to M - 1 items stand.
      end_2: `<|end|>` against all words, in replies without and with items.
      own: the slate's own items against all words, in replies with items.
    """

    say_M: np.ndarray
    end_2: np.ndarray
    own: float


def base_rates(replies: Iterable[Sequence[int]], item_offset: int, say: int, end: int, most: int) -> BaseRates:
    """Of replies as token ids after `<|rec|>`: items, `<|say|>`, words with own items among them, `<|end|>`.

    `most` is M. Half a count is added to each kind, so that what never occurs stays possible.
    """
    stop_M, on_M = np.full(most, 0.5), np.full(most, 0.5)
    end_2, word_2, own = np.full(2, 0.5), np.full(2, 0.5), 0.5
    for reply in replies:
        tokens = list(reply)
        if say not in tokens:
            continue
        count = tokens.index(say)
        on_M[:count] += 1
        if count < most:
            stop_M[count] += 1
        words = np.asarray(tokens[count + 1 :])
        items, ends = int((words >= item_offset).sum()), int((words == end).sum())
        proposes = int(count > 0)
        end_2[proposes] += ends
        word_2[proposes] += len(words) - items - ends
        own += items if count else 0
    return BaseRates(np.log(stop_M / on_M), np.log(end_2 / word_2), float(np.log(own / word_2[1])))


def normalised(hidden: jax.Array) -> jax.Array:
    """Hidden states `[..., D]` over their root mean square, in their own type: heads start alike on any trunk."""
    wide = hidden.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(hidden.dtype)


class Decisions(nnx.Module):
    """Log-odds, float32, from normalised hidden states and, in the slate, from what is known of the context.

    Args:
      width: D.
      state: width of what is known of the context.
      most: M, most items of a slate.
      rates: where the log-odds start; None: even.
    """

    def __init__(self, width: int, state: int, most: int, rates: BaseRates | None = None):
        rates = BaseRates(np.zeros(most), np.zeros(2), 0.0) if rates is None else rates
        self.kernel = nnx.Param(jnp.zeros((width, 3)))  # of say, end, own
        self.state_kernel = nnx.Param(jnp.zeros(state))
        self.say_bias = nnx.Param(jnp.asarray(rates.say_M, jnp.float32))
        self.end_bias = nnx.Param(jnp.asarray(rates.end_2, jnp.float32))
        self.own_bias = nnx.Param(jnp.asarray(rates.own, jnp.float32))

    def say(self, state_D: jax.Array, known_S: jax.Array | None, count: jax.Array) -> jax.Array:
        """`<|say|>` against all items together, `[...]`.

        Args:
          state_D: `[..., D]` normalised hidden states.
          known_S: what is known of the context (`SlateState.known`), or None.
          count: `[...]` items that stand; at M only `<|say|>` is left, whatever this says.
        """
        odds = jnp.einsum("...D,D->...", state_D.astype(jnp.float32), self.kernel[...][:, 0])
        if known_S is not None:
            odds = odds + known_S @ self.state_kernel[...]
        return odds + self.say_bias[...][jnp.minimum(count, len(self.say_bias[...]) - 1)]

    def after(self, state_D: jax.Array, any_own: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`<|end|>`, and the slate's own items together, against all words, `[...]` each.

        `any_own` `[...]` says whether the slate has items; where it has none, ignore the second.
        """
        odds = jnp.einsum("...D,DK->...K", state_D.astype(jnp.float32), self.kernel[...][:, 1:])
        return odds[..., 0] + self.end_bias[...][any_own.astype(jnp.int32)], odds[..., 1] + self.own_bias[...]
