"""What the context asks for, as a vector added to the hidden state where items are chosen.

Half a million words teach a small language model little English; a frozen sentence encoder knows much. The mean
embedding of what the seeker said in the window and that of the items named there (`signals/relevance.py`) are projected
to width D and added at every slot of the act. The projections start as copies of the item tower's, so that the first
logits are about `STRENGTH` times the cosines of context and item, and learn from there. Words' logits do not see them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

STRENGTH = 4.0


class Query(nnx.Module):
    """Projections of the two context vectors.

    Args:
      projection_ED: the item tower's, at its initial value.
      scale: standard deviation it was drawn with.
    """

    def __init__(self, projection_ED: jax.Array, scale: float):
        gain = STRENGTH / (projection_ED.shape[1] * scale**2)
        self.text_kernel = nnx.Param(gain * projection_ED)
        self.named_kernel = nnx.Param(gain * projection_ED)

    def __call__(self, text: jax.Array, named: jax.Array) -> jax.Array:
        """`[..., E]` unit or zero vectors to `[..., D]` float32; zero where both are zero."""
        return text.astype(jnp.float32) @ self.text_kernel[...] + named.astype(jnp.float32) @ self.named_kernel[...]
