"""GPT-2 (Radford et al. 2019): learned positions, layer norms with biases, one kernel for queries, keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from crs_jax.models import transformer
from crs_jax.models.decoder import DecoderConfig, expect
from crs_jax.models.transformer import dropout
from crs_jax.runtime.sharding import by_batch, whole

# C is query, key, value; F the width of the MLP.
TENSORS = {
    "wpe.weight": ("positions", "T,D"),
    "h.{n}.ln_1.weight": ("ln1_scale", "D"),
    "h.{n}.ln_1.bias": ("ln1_bias", "D"),
    "h.{n}.attn.c_attn.weight": ("qkv_kernel", "D,CHK"),
    "h.{n}.attn.c_attn.bias": ("qkv_bias", "CHK"),
    "h.{n}.attn.c_proj.weight": ("out_kernel", "HK,D"),
    "h.{n}.attn.c_proj.bias": ("out_bias", "D"),
    "h.{n}.ln_2.weight": ("ln2_scale", "D"),
    "h.{n}.ln_2.bias": ("ln2_bias", "D"),
    "h.{n}.mlp.c_fc.weight": ("up_kernel", "D,F"),
    "h.{n}.mlp.c_fc.bias": ("up_bias", "F"),
    "h.{n}.mlp.c_proj.weight": ("down_kernel", "F,D"),
    "h.{n}.mlp.c_proj.bias": ("down_bias", "D"),
    "ln_f.weight": ("final_scale", "D"),
    "ln_f.bias": ("final_bias", "D"),
}
REVISIONS = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}


@dataclasses.dataclass(frozen=True)
class GPT2Config(DecoderConfig):
    """Sizes of a GPT-2."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    words = "wte.weight"
    tensors = TENSORS
    revisions = REVISIONS

    @property
    def sizes(self) -> dict[str, int]:
        """With C and F."""
        return {**super().sizes, "C": 3, "F": 4 * self.width}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> GPT2Config:
        """Variants whose arithmetic differs are refused."""
        width, heads = found["n_embd"], found["n_head"]
        expect(
            found,
            {
                "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
                "n_inner": (None, 4 * width),
                "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,),
                "add_cross_attention": (False,),
            },
        )
        if width % heads:
            raise ValueError(f"n_embd {width} is not a multiple of n_head {heads}")
        positions = found.get("n_positions", found.get("n_ctx", 1024))
        return cls(found["n_layer"], width, heads, positions, epsilon=found.get("layer_norm_epsilon", 1e-5))

    def to_json(self) -> dict[str, Any]:
        """As transformers' `GPT2Config`."""
        return {
            "activation_function": "gelu_new",
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "n_positions": self.positions,
            "n_ctx": self.positions,
            "n_inner": None,
            "layer_norm_epsilon": self.epsilon,
        }

    def trunk(self, rngs: nnx.Rngs) -> Trunk:
        """`Trunk`."""
        return Trunk(self, rngs=rngs)


def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """Layer norm over the last axis, in float32, returned as x's type."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    return ((x32 - mean) * lax.rsqrt(variance + epsilon) * scale_D + bias_D).astype(x.dtype)


class Block(transformer.Block):
    """One pre-norm layer. Kernels are stored as (in, out), the attention's as (D, 3, H, K)."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        D, H, K = config.width, config.heads, config.head_width
        normal = jax.nn.initializers.normal(0.02)
        # GPT-2 scales what is added to the residual stream by 1/sqrt(number of such additions).
        residual = jax.nn.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
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

    def qkv(self, x: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of the normed input; positions are in it already."""
        h = layer_norm(x, self.ln1_scale[...], self.ln1_bias[...], self.config.epsilon)
        qkv = jnp.einsum("...D,DCHK->...CHK", h, self.cast(self.qkv_kernel)) + self.cast(self.qkv_bias)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        return q, k, v

    def finish(self, x: jax.Array, mixed: jax.Array, key: jax.Array | None) -> jax.Array:
        """With dropout of both branches."""
        attended = jnp.einsum("...HK,HKD->...D", mixed, self.cast(self.out_kernel)) + self.cast(self.out_bias)
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(attended, self.config.dropout, keys[0])
        h = layer_norm(x, self.ln2_scale[...], self.ln2_bias[...], self.config.epsilon)
        h = jax.nn.gelu(h @ self.cast(self.up_kernel) + self.cast(self.up_bias), approximate=True)
        out = h @ self.cast(self.down_kernel) + self.cast(self.down_bias)
        return by_batch(x + dropout(out, self.config.dropout, keys[1]))


class Trunk(transformer.Trunk):
    """Position embeddings, the stacked layers and the last layer norm."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (config.positions, config.width)))
        self.final_scale = nnx.Param(jnp.ones(config.width))
        self.final_bias = nnx.Param(jnp.zeros(config.width))
        super().__init__(config, Block, rngs=rngs)

    def enter(self, x: jax.Array, position: jax.Array) -> jax.Array:
        """Positions are added."""
        return by_batch((x + whole(self.positions[...])[position]).astype(self.config.dtype))

    def leave(self, x: jax.Array) -> jax.Array:
        """The last norm."""
        return layer_norm(x, self.final_scale[...], self.final_bias[...], self.config.epsilon)
