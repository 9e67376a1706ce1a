"""Attention over whole sequences: one function, by XLA's own products or by cuDNN's fused kernel.

Both take any mask, and are equal up to rounding but in rows that see nothing, which nobody reads: 0 by XLA, the mean of
the values by cuDNN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from crs_jax.models.products import float32_product
from crs_jax.runtime.errors import InputError

TILE = 128
"""Lengths are padded to a multiple of this for cuDNN, whose kernels work in tiles."""


def attend(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask_BTS: jax.Array, implementation: str = "xla"
) -> jax.Array:
    """Mixed values `[B, T, H, K]`: softmax of scaled scores where the mask holds, in float32, times the values.

    Args:
      q_BTHK, k_BSHK, v_BSHK: queries, keys and values; for cuDNN bfloat16, T and S multiples of `TILE`.
      mask_BTS: True where token t may attend to token s.
      implementation: `xla`, or `cudnn`, which never holds the B x H x T x S scores.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=mask_BTS[:, None], implementation="cudnn")
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q_BTHK, k_BSHK, v_BSHK))
    scores = float32_product("BHTK,BHSK->BHTS", q, k)
    probs = attention_weights(scores * q.shape[-1] ** -0.5, mask_BTS[:, None])
    return jnp.einsum("BHTS,BHSK->BTHK", probs.astype(v.dtype), v)


def attention_weights(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis in float32 where `mask` holds; a row without any is all zero."""
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    top = lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)


def tiled(x_BTD: jax.Array, position_BT: jax.Array, mask_BTS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The trunk's input with T and S padded to a multiple of `TILE`; what is added is seen by nobody."""
    more = -x_BTD.shape[1] % TILE
    if not more:
        return x_BTD, position_BT, mask_BTS
    shape = jnp.broadcast_shapes(position_BT.shape, x_BTD.shape[:2])
    position_BT = jnp.pad(jnp.broadcast_to(position_BT, shape), ((0, 0), (0, more)))
    mask_BTS = jnp.pad(mask_BTS, [(0, 0)] * (mask_BTS.ndim - 2) + [(0, more), (0, more)])
    return jnp.pad(x_BTD, ((0, 0), (0, more), (0, 0))), position_BT, mask_BTS


def refuse_where_missing(implementation: str) -> None:
    """`InputError` for cuDNN where JAX does not run on an NVIDIA GPU: nothing is done by other means than asked for."""
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise InputError(
            f"--config.model.attention=cudnn: needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}; use xla"
        )
