"""What decoders share: layers stacked and scanned, their cache, and three ways through them.

The three are equal up to float reassociation: `__call__` (whole sequences), `prefill` (the same, keeping keys and
values) and `decode` (one token a row against the cache). Compile time does not grow with depth. Norms, softmaxes and
their statistics are float32; matrix products run in the config's `dtype`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike

from crs_jax.models.attention import attend, attend_one, tiled
from crs_jax.models.decoder import DecoderConfig


class KVCache(NamedTuple):
    """Keys and values of all layers; S is the number of slots."""

    k_LBJSK: jax.Array
    v_LBJSK: jax.Array


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class Block(nnx.Module):
    """One layer around attention, whose parts `qkv` and `finish` a decoder gives."""

    def __init__(self, config: DecoderConfig):
        self.config: Any = config

    def cast(self, param: nnx.Param) -> jax.Array:
        """The parameter in the activations' type."""
        return param[...].astype(self.config.dtype)

    def qkv(self, x: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `..HK`, keys and values `..JK` of the layer's input `..D` at absolute positions `..`."""
        raise NotImplementedError

    def finish(self, x: jax.Array, mixed: jax.Array, key: jax.Array | None) -> jax.Array:
        """The layer's output: attention's `mixed ..HK` and the MLP added to the residual stream `x ..D`."""
        raise NotImplementedError

    def full(self, x_BTD: jax.Array, position_BT: jax.Array, mask_BTS: jax.Array, key: jax.Array | None):
        """The layer over whole sequences; also returns keys and values, `BJSK`."""
        q, k, v = self.qkv(x_BTD, position_BT)
        mixed = attend(q, k, v, mask_BTS, self.config.attention)
        return self.finish(x_BTD, mixed, key), (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))


class Trunk(nnx.Module):
    """From embeddings to hidden states: `enter`, the stacked layers, `leave`; a decoder gives the first and the last.

    Args:
      config: sizes.
      block: makes one layer of `config`.
    """

    def __init__(self, config: DecoderConfig, block: Callable[..., Block], *, rngs: nnx.Rngs):
        self.config: Any = config

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return block(config, rngs=rngs)

        self.blocks = stack(rngs)

    def enter(self, x: jax.Array, position: jax.Array) -> jax.Array:
        """Input of the first layer, in the activations' type, of embeddings `..D` at absolute positions `..`."""
        raise NotImplementedError

    def leave(self, x: jax.Array) -> jax.Array:
        """Hidden states of the last layer's output `..D`."""
        raise NotImplementedError

    def _run(self, x_BTD, position_BT, mask_BTS, key, keep_cache: bool, keep_hidden: bool):
        graphdef, layers = nnx.split(self.blocks)
        T, position_BT = x_BTD.shape[1], jnp.asarray(position_BT)
        if self.config.attention == "cudnn":
            x_BTD, position_BT, mask_BTS = tiled(x_BTD, position_BT, mask_BTS)
        x_BTD = self.enter(x_BTD, position_BT)
        x_BTD = dropout(
            x_BTD, self.config.dropout, None if key is None else jax.random.fold_in(key, self.config.layers)
        )

        def layer(x, indexed):
            index, state = indexed
            block = nnx.merge(graphdef, state)
            out, kv = block.full(x, position_BT, mask_BTS, None if key is None else jax.random.fold_in(key, index))
            return out, (kv if keep_cache else None, x if keep_hidden else None)

        if self.config.remat:
            layer = jax.checkpoint(layer)
        x_BTD, (kv, hidden) = lax.scan(layer, x_BTD, (jnp.arange(self.config.layers), layers))
        kv, hidden = jax.tree.map(lambda a: a[..., :T, :], (kv, hidden))
        return self.leave(x_BTD[:, :T]), kv, hidden

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
        shape = (c.layers, batch, c.kv_heads, slots, c.head_width)
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
        B, R = len(x_BD), reply.k_LBJSK.shape[3]
        mask_B1 = jnp.repeat(prompt_mask_CP, B // len(prompt_mask_CP), axis=0)[:, None]
        mask_BHS = jnp.concatenate([mask_B1, jnp.broadcast_to(jnp.arange(R) <= slot, (B, 1, R))], -1)

        def layer(carry, indexed):
            x, k_all, v_all = carry
            index, state, k_CJPK, v_CJPK = indexed
            block = nnx.merge(graphdef, state)
            q_BHK, k_BJK, v_BJK = block.qkv(x, position_B)
            k_all = lax.dynamic_update_slice(k_all, k_BJK[None, :, :, None], (index, 0, 0, slot, 0))
            v_all = lax.dynamic_update_slice(v_all, v_BJK[None, :, :, None], (index, 0, 0, slot, 0))
            k_BJRK = lax.dynamic_index_in_dim(k_all, index, 0, keepdims=False)
            v_BJRK = lax.dynamic_index_in_dim(v_all, index, 0, keepdims=False)
            mixed = attend_one(q_BHK, k_CJPK, v_CJPK, k_BJRK, v_BJRK, mask_BHS)
            return (block.finish(x, mixed, None), k_all, v_all), None

        carry = (self.enter(x_BD, position_B), *reply)
        xs = (jnp.arange(self.config.layers), layers, *prompt)
        (x_BD, k_all, v_all), _ = lax.scan(layer, carry, xs)
        return self.leave(x_BD), KVCache(k_all, v_all)
