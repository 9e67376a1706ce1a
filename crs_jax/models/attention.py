"""Attention over whole sequences, by XLA's own products or by cuDNN's fused kernel, and of one token against caches.

The two take any mask, and are equal up to rounding but in rows that see nothing, which nobody reads: 0 by XLA, the mean
of the values by cuDNN. Keys and values may have fewer heads (J) than queries (H): each is read by the H / J heads of
queries that stand side by side, as in transformers.
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
    q_BTHK: jax.Array, k_BSJK: jax.Array, v_BSJK: jax.Array, mask_BTS: jax.Array, implementation: str = "xla"
) -> jax.Array:
    """Mixed values `[B, T, H, K]`: softmax of scaled scores where the mask holds, in float32, times the values.

    Args:
      q_BTHK, k_BSJK, v_BSJK: queries, keys and values; for cuDNN bfloat16, T and S multiples of `TILE`.
      mask_BTS: True where token t may attend to token s.
      implementation: `xla`, or `cudnn`, which never holds the B x H x T x S scores.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BTHK, k_BSJK, v_BSJK, mask=mask_BTS[:, None], implementation="cudnn")
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q_BTHK, k_BSJK, v_BSJK))
    (B, H, T, K), (_, J, S, _) = q.shape, k.shape
    stacked = q.reshape(B, J, H // J * T, K)  # queries that share a key, one after another
    scores = float32_product("BJTK,BJSK->BJTS", stacked, k).reshape(B, H, T, S)
    probs = attention_weights(scores * K**-0.5, mask_BTS[:, None]).astype(v.dtype)
    mixed = jnp.einsum("BJTS,BJSK->BTJK", probs.reshape(B, J, H // J * T, S), v)
    return jnp.moveaxis(mixed.reshape(B, H // J, T, J, K), 1, 3).reshape(B, T, H, K)


def attend_one(
    q_BHK: jax.Array,
    k_CJPK: jax.Array,
    v_CJPK: jax.Array,
    k_BJRK: jax.Array,
    v_BJRK: jax.Array,
    mask_BHS: jax.Array,
) -> jax.Array:
    """The same for one token a row, `[B, H, K]`, over its prompt and its reply, S = P + R.

    Args:
      q_BHK: queries, B = C x G, the G replies to a prompt side by side.
      k_CJPK, v_CJPK: keys and values of the prompts, which a group shares.
      k_BJRK, v_BJRK: of the replies.
      mask_BHS: True where the token may attend.
    """
    (B, H, K), (C, J, P, _) = q_BHK.shape, k_CJPK.shape
    q_BJQK = q_BHK.reshape(B, J, H // J, K)
    q_CGJQK = q_BJQK.reshape(C, B // C, *q_BJQK.shape[1:])
    old = jnp.einsum("CGJQK,CJPK->CGJQP", q_CGJQK, k_CJPK, preferred_element_type=jnp.float32)
    new = jnp.einsum("BJQK,BJRK->BJQR", q_BJQK, k_BJRK, preferred_element_type=jnp.float32)
    scores = jnp.concatenate([old.reshape(B, H, P), new.reshape(B, H, -1)], -1) * K**-0.5
    probs = attention_weights(scores, mask_BHS).astype(v_BJRK.dtype)
    of_prompt, of_reply = probs[..., :P].reshape(*q_CGJQK.shape[:-1], P), probs[..., P:].reshape(B, J, H // J, -1)
    mixed = jnp.einsum("CGJQP,CJPK->CGJQK", of_prompt, v_CJPK).reshape(q_BHK.shape)
    return mixed + jnp.einsum("BJQR,BJRK->BJQK", of_reply, v_BJRK).reshape(q_BHK.shape)


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
