"""A decoder in a file of its own: rotary positions, half as many key as query heads, one norm a layer, untied output.

python -m crs_jax.main --plugins=tests/models/toy_decoder.py --config.model.decoder=toy ...
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models import transformer
from crs_jax.models.decoder import DECODERS, Decoder, DecoderConfig, expect
from crs_jax.models.transformer import dropout

TENSORS = {
    "layers.{n}.norm.weight": ("norm_scale", "D"),
    "layers.{n}.q.weight": ("q_kernel", "HK,D->DHK"),
    "layers.{n}.k.weight": ("k_kernel", "JK,D->DJK"),
    "layers.{n}.v.weight": ("v_kernel", "JK,D->DJK"),
    "layers.{n}.out.weight": ("out_kernel", "D,HK->HKD"),
    "layers.{n}.gate.weight": ("gate_kernel", "F,D->DF"),
    "layers.{n}.up.weight": ("up_kernel", "F,D->DF"),
    "layers.{n}.down.weight": ("down_kernel", "D,F->FD"),
    "norm.weight": ("final_scale", "D"),
}


@dataclasses.dataclass(frozen=True)
class ToyConfig(DecoderConfig):
    base: float = 100.0  # of the wavelengths of positions

    model_type = "toy"
    prefix = "toy."
    words = "embed.weight"
    tensors = TENSORS

    @property
    def kv_heads(self):
        return self.heads // 2

    @property
    def tied(self):
        return False

    @property
    def sizes(self):
        return {**super().sizes, "F": 2 * self.width}

    @classmethod
    def from_json(cls, found):
        expect(found, {"activation": ("silu",)})
        return cls(found["layers"], found["width"], found["heads"], found["positions"], base=found["base"])

    def to_json(self):
        return {name: getattr(self, name) for name in ("layers", "width", "heads", "positions", "base")}

    def trunk(self, rngs):
        return Trunk(self, rngs=rngs)


def rms_norm(x, scale_D, epsilon):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon) * scale_D).astype(x.dtype)


def rotated(x, position, base):
    """Heads `..HK`, pairs of halves turned by angles in proportion to the positions `..`."""
    half = x.shape[-1] // 2
    angle = position[..., None, None] * base ** (-jnp.arange(half) / half)
    one, other = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1)


class Block(transformer.Block):
    def __init__(self, config, *, rngs):
        super().__init__(config)
        s = config.sizes
        for name, axes in (("q", "DHK"), ("k", "DJK"), ("v", "DJK"), ("out", "HKD"), ("gate", "DF"), ("up", "DF"),
                           ("down", "FD")):  # fmt: skip
            kernel = 0.05 * jax.random.normal(rngs.params(), [s[axis] for axis in axes])
            setattr(self, f"{name}_kernel", nnx.Param(kernel))
        self.norm_scale = nnx.Param(jnp.ones(config.width))

    def normed(self, x):
        return rms_norm(x, self.norm_scale[...], self.config.epsilon)

    def qkv(self, x, position):
        h = self.normed(x)
        kernels = (self.q_kernel, self.k_kernel, self.v_kernel)
        q, k, v = (jnp.einsum("...D,DHK->...HK", h, self.cast(kernel)) for kernel in kernels)
        return rotated(q, position, self.config.base), rotated(k, position, self.config.base), v

    def finish(self, x, mixed, key):
        h = self.normed(x)
        out = jnp.einsum("...HK,HKD->...D", mixed, self.cast(self.out_kernel))
        out = out + (jax.nn.silu(h @ self.cast(self.gate_kernel)) * (h @ self.cast(self.up_kernel))) @ self.cast(
            self.down_kernel
        )
        return x + dropout(out, self.config.dropout, key)


class Trunk(transformer.Trunk):
    def __init__(self, config, *, rngs):
        self.final_scale = nnx.Param(jnp.ones(config.width))
        super().__init__(config, Block, rngs=rngs)

    def enter(self, x, position):
        return x.astype(self.config.dtype)

    def leave(self, x):
        return rms_norm(x, self.final_scale[...], self.config.epsilon)


DECODERS["toy"] = Decoder("Toy", ToyConfig)
