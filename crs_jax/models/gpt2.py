"""GPT-2's trunk (Radford et al. 2019) in Flax NNX: embeddings in, hidden states out.

Layers are one stacked module run by `lax.scan`, so that compile time does not grow with depth. Three ways through
it, equal up to float reassociation: `__call__` (whole sequences), `prefill` (the same, keeping keys and values) and
`decode` (one token a row against the cache). Layer norms, softmax and the residual stream's statistics are float32;
matrix products run in `GPT2Config.dtype`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike

from crs_jax.models.attention import attend, attention_weights, tiled
from crs_jax.runtime.sharding import by_batch, whole


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape of the trunk; `dropout` is applied to embeddings and residual branches, where a key is given.

    `attention` over whole sequences is by `xla` or `cudnn` (`models/attention.py`); decoding is by XLA.
    """

    layers: int
    width: int
    heads: int
    positions: int
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    epsilon: float = 1e-5
    attention: str = "xla"

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.heads


class KVCache(NamedTuple):
    """Keys and values of all layers; S is the number of slots."""

    k_LBHSK: jax.Array
    v_LBHSK: jax.Array


def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """Layer norm over the last axis, in float32, returned as x's type."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    return ((x32 - mean) * lax.rsqrt(variance + epsilon) * scale_D + bias_D).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class Block(nnx.Module):
    """One pre-norm transformer layer. Kernels are stored as (in, out), the attention's as (D, 3, H, K)."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        D, H, K = config.width, config.heads, config.head_width
        normal = jax.nn.initializers.normal(0.02)
        # GPT-2 scales what is added to the residual stream by 1/sqrt(number of such additions).
        residual = jax.nn.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
        self.config = config
        self.ln1_scale, self.ln1_bias = nnx.Param(jnp.ones(D)), nnx.Param(jnp.zeros(D))
        self.ln2_scale, self.ln2_bias = nnx.Param(jnp.ones(D)), nnx.Param(jnp.zeros(D))
        self.qkv_kernel = nnx.Param(normal(rngs.params(), (D, 3, H, K)))
        self.qkv_bias = nnx.Param(jnp.zeros((3, H, K)))
        self.out_kernel = nnx.Param(residual(rngs.params(), (H, K, D)))
        self.out_bias = nnx.Param(jnp.zeros(D))
        self.up_kernel = nnx.Param(normal(rngs.params(), (D, 4 * D)))
        self.up_bias = nnx.Param(jnp.zeros(4 * D))
        self.down_kernel = nnx.Param(residual(rngs.params(), (4 * D, D)))
        self.down_bias = nnx.Param(jnp.zeros(D))

    def _cast(self, param: nnx.Param) -> jax.Array:
        return param[...].astype(self.config.dtype)

    def qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values `..HK` of the normed input `..D`."""
        h = layer_norm(x, self.ln1_scale[...], self.ln1_bias[...], self.config.epsilon)
        qkv = jnp.einsum("...D,DCHK->...CHK", h, self._cast(self.qkv_kernel)) + self._cast(self.qkv_bias)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        return q, k, v

    def finish(self, x: jax.Array, mixed: jax.Array, key: jax.Array | None) -> jax.Array:
        """Adds the attention's output `mixed ..HK` and the MLP to the residual stream `x ..D`."""
        attended = jnp.einsum("...HK,HKD->...D", mixed, self._cast(self.out_kernel)) + self._cast(self.out_bias)
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(attended, self.config.dropout, keys[0])
        h = layer_norm(x, self.ln2_scale[...], self.ln2_bias[...], self.config.epsilon)
        h = jax.nn.gelu(h @ self._cast(self.up_kernel) + self._cast(self.up_bias), approximate=True)
        out = h @ self._cast(self.down_kernel) + self._cast(self.down_bias)
        return by_batch(x + dropout(out, self.config.dropout, keys[1]))

    def full(self, x_BTD: jax.Array, mask_BTS: jax.Array, key: jax.Array | None):
        """The layer over whole sequences; also returns keys and values, `BHSK`."""
        q, k, v = self.qkv(x_BTD)
        mixed = attend(q, k, v, mask_BTS, self.config.attention)
        return self.finish(x_BTD, mixed, key), (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))


class Trunk(nnx.Module):
    """Position embeddings, the stacked layers and the last layer norm."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (config.positions, config.width)))
        self.final_scale = nnx.Param(jnp.ones(config.width))
        self.final_bias = nnx.Param(jnp.zeros(config.width))

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)

    def _enter(self, x: jax.Array, position: jax.Array) -> jax.Array:
        return by_batch((x + whole(self.positions[...])[position]).astype(self.config.dtype))

    def _leave(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.final_scale[...], self.final_bias[...], self.config.epsilon)

    def _run(self, x_BTD, position_BT, mask_BTS, key, keep_cache: bool, keep_hidden: bool):
        graphdef, layers = nnx.split(self.blocks)
        T = x_BTD.shape[1]
        if self.config.attention == "cudnn":
            x_BTD, position_BT, mask_BTS = tiled(x_BTD, jnp.asarray(position_BT), mask_BTS)
        x_BTD = self._enter(x_BTD, position_BT)
        x_BTD = dropout(
            x_BTD, self.config.dropout, None if key is None else jax.random.fold_in(key, self.config.layers)
        )

        def layer(x, indexed):
            index, state = indexed
            block = nnx.merge(graphdef, state)
            out, kv = block.full(x, mask_BTS, None if key is None else jax.random.fold_in(key, index))
            return out, (kv if keep_cache else None, x if keep_hidden else None)

        if self.config.remat:
            layer = jax.checkpoint(layer)
        x_BTD, (kv, hidden) = lax.scan(layer, x_BTD, (jnp.arange(self.config.layers), layers))
        kv, hidden = jax.tree.map(lambda a: a[..., :T, :], (kv, hidden))
        return self._leave(x_BTD[:, :T]), kv, hidden

    def __call__(
        self, x_BTD: jax.Array, position_BT: ArrayLike, mask_BTS: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Final hidden states `[B, T, D]`.

        Args:
          x_BTD: token embeddings.
          position_BT: absolute positions, 0 where a token is padding.
          mask_BTS: bool, True where token t may attend to token s.
          key: dropout key; None for none.
        """
        return self._run(x_BTD, position_BT, mask_BTS, key, False, False)[0]

    def hidden_states(self, x_BTD: jax.Array, position_BT: ArrayLike, mask_BTS: jax.Array) -> jax.Array:
        """Input of every layer and the final state, `[L + 1, B, T, D]`, as transformers' `output_hidden_states`."""
        last, _, hidden = self._run(x_BTD, position_BT, mask_BTS, None, False, True)
        return jnp.concatenate([hidden, last[None]])

    def prefill(self, x_BTD: jax.Array, position_BT: ArrayLike, mask_BTS: jax.Array) -> tuple[jax.Array, KVCache]:
        """Final hidden states and the cache of all T tokens."""
        hidden, kv, _ = self._run(x_BTD, position_BT, mask_BTS, None, True, False)
        return hidden, KVCache(*kv)

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        """A cache of zeros for `batch` rows and `slots` tokens."""
        c = self.config
        shape = (c.layers, batch, c.heads, slots, c.head_width)
        return KVCache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))

    def decode(
        self,
        x_BD: jax.Array,
        position_B: jax.Array,
        prompt: KVCache,
        prompt_mask_CP: jax.Array,
        reply: KVCache,
        slot: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """One token a row. Rows are C prompts x G replies each, so that a group shares one prompt cache.

        Args:
          x_BD: embeddings of the tokens in reply slot `slot`, B = C * G, a prompt's replies side by side.
          position_B: their absolute positions.
          prompt: cache of the prompts, batch C, read only.
          prompt_mask_CP: True where a prompt slot holds a token.
          reply: cache of the replies so far, batch B; slots 0..slot-1 are filled.
          slot: scalar int.

        Returns:
          Final hidden states `[B, D]` and the reply cache with `slot` filled.
        """
        graphdef, layers = nnx.split(self.blocks)
        C, R = prompt_mask_CP.shape[0], reply.k_LBHSK.shape[3]
        B = x_BD.shape[0]
        G, scale = B // C, self.config.head_width**-0.5
        mask_B1 = jnp.repeat(prompt_mask_CP, G, axis=0)[:, None]
        mask_BHS = jnp.concatenate([mask_B1, jnp.broadcast_to(jnp.arange(R) <= slot, (B, 1, R))], -1)

        def layer(carry, indexed):
            x, k_all, v_all = carry
            index, state, k_CHPK, v_CHPK = indexed
            block = nnx.merge(graphdef, state)
            q_BHK, k_BHK, v_BHK = block.qkv(x)
            k_all = lax.dynamic_update_slice(k_all, k_BHK[None, :, :, None], (index, 0, 0, slot, 0))
            v_all = lax.dynamic_update_slice(v_all, v_BHK[None, :, :, None], (index, 0, 0, slot, 0))
            k_BHRK = lax.dynamic_index_in_dim(k_all, index, 0, keepdims=False)
            v_BHRK = lax.dynamic_index_in_dim(v_all, index, 0, keepdims=False)
            q_CGHK = q_BHK.reshape(C, G, *q_BHK.shape[1:])
            old = jnp.einsum("CGHK,CHPK->CGHP", q_CGHK, k_CHPK, preferred_element_type=jnp.float32)
            new = jnp.einsum("BHK,BHRK->BHR", q_BHK, k_BHRK, preferred_element_type=jnp.float32)
            scores = jnp.concatenate([old.reshape(B, *old.shape[2:]), new], -1) * scale
            probs = attention_weights(scores, mask_BHS).astype(x.dtype)
            P = old.shape[-1]
            probs_CGHP = probs[..., :P].reshape(C, G, -1, P)
            mixed = jnp.einsum("CGHP,CHPK->CGHK", probs_CGHP, v_CHPK).reshape(q_BHK.shape)
            mixed = mixed + jnp.einsum("BHR,BHRK->BHK", probs[..., P:], v_BHRK)
            return (block.finish(x, mixed, None), k_all, v_all), None

        carry = (self._enter(x_BD, position_B), *reply)
        xs = (jnp.arange(self.config.layers), layers, *prompt)
        (x_BD, k_all, v_all), _ = lax.scan(layer, carry, xs)
        return self._leave(x_BD), KVCache(k_all, v_all)
