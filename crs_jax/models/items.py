"""The item tower: one vector and one bias for each item of the catalogue.

What is known of an item is its frozen content (a sentence embedding of its description, its attributes and its log
popularity), and what is learnt of it alone is a residual, which starts at zero. Its input embedding is the content's
projection plus the residual; its logit matches both (`models/policy.py`). So items never seen in training can be read
and ranked. Rows are padded for sharding; padded logits are masked by the policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Frozen(nnx.Variable):
    """State that no optimizer touches."""


def padded(rows: int, multiple: int = 128) -> int:
    """Rows rounded up to the multiple."""
    return -(-rows // multiple) * multiple


def centred(content_NE: np.ndarray) -> np.ndarray:
    """Unit rows after taking away the mean: what tells items apart, not what they share."""
    content_NE = content_NE - content_NE.mean(0, keepdims=True)
    norm_N1 = np.linalg.norm(content_NE, axis=1, keepdims=True)
    return (content_NE / np.maximum(norm_N1, 1e-6)).astype(np.float32)


def contents(
    content_NE: np.ndarray, attributes_NF: np.ndarray | None, log_popularity_N: np.ndarray | None
) -> np.ndarray:
    """Frozen contents `[N, E + F + 1]`: centred description embeddings, attributes, centred log popularity."""
    N = len(content_NE)
    attributes_NF = np.zeros((N, 0)) if attributes_NF is None else attributes_NF
    popular_N = np.zeros(N) if log_popularity_N is None else log_popularity_N - log_popularity_N.mean()
    return np.concatenate([centred(content_NE), attributes_NF, popular_N[:, None]], 1).astype(np.float32)


class ItemTower(nnx.Module):
    """Vectors and biases of N items in tables of `padded(N)` rows.

    Args:
      content_NE: frozen description embeddings.
      attributes_NF: frozen attributes (`features/attributes.py`); None for none.
      log_popularity_N: None for zero.
      width: D.
      pad_to: rows are padded to a multiple of this.
      scale: standard deviation of the projection's first values.
    """

    def __init__(
        self,
        content_NE: np.ndarray,
        attributes_NF: np.ndarray | None,
        log_popularity_N: np.ndarray | None,
        width: int,
        *,
        rngs: nnx.Rngs,
        pad_to: int = 128,
        scale: float = 0.02,
    ):
        N = len(content_NE)
        rows = padded(N, pad_to)
        self.num_items = N
        known_NE = contents(content_NE, attributes_NF, log_popularity_N)
        self.content = Frozen(jnp.asarray(np.pad(known_NE, ((0, rows - N), (0, 0))), jnp.float32))
        self.projection = nnx.Param(scale * jax.random.normal(rngs.params(), (known_NE.shape[1], width)))
        self.residual = nnx.Param(jnp.zeros((rows, width)))
        self.bias = nnx.Param(jnp.zeros(rows))
