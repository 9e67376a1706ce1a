"""MiniLM, the frozen sentence encoder: a small BERT in Flax NNX, mean-pooled to unit vectors.

The same arithmetic as sentence-transformers with the same weights (Reimers & Gurevych 2019, arXiv 1908.10084; BERT:
Devlin et al. 2019, arXiv 1810.04805), so relevance needs no torch and runs where the policy runs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from tokenizers import Tokenizer

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json

BUCKETS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # padded lengths, so that few shapes compile
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "words": "vocab_size",
    "positions": "max_position_embeddings",
}
"""Of `BertSettings`, in `config.json`."""
MOST_SIZE = 2**22
FEW = 8  # rows of the one batch that is not full, where it holds so few texts


@dataclasses.dataclass(frozen=True)
class BertSettings:
    """What `config.json` says of the network."""

    layers: int
    width: int
    heads: int
    hidden: int
    words: int
    positions: int
    epsilon: float


class BertLayers(nnx.Module):
    """All transformer layers of a BERT, each parameter stacked on a leading layer axis L and run by `lax.scan`."""

    def __init__(self, settings: BertSettings):
        layers, width, hidden = settings.layers, settings.width, settings.hidden
        self.settings = settings
        self.qkv_kernel = nnx.Param(jnp.zeros((layers, width, 3 * width)))
        self.qkv_bias = nnx.Param(jnp.zeros((layers, 3 * width)))
        self.out_kernel = nnx.Param(jnp.zeros((layers, width, width)))
        self.out_bias = nnx.Param(jnp.zeros((layers, width)))
        self.attention_scale = nnx.Param(jnp.ones((layers, width)))
        self.attention_shift = nnx.Param(jnp.zeros((layers, width)))
        self.up_kernel = nnx.Param(jnp.zeros((layers, width, hidden)))
        self.up_bias = nnx.Param(jnp.zeros((layers, hidden)))
        self.down_kernel = nnx.Param(jnp.zeros((layers, hidden, width)))
        self.down_bias = nnx.Param(jnp.zeros((layers, width)))
        self.mlp_scale = nnx.Param(jnp.ones((layers, width)))
        self.mlp_shift = nnx.Param(jnp.zeros((layers, width)))

    def one(self, x_BTD: jax.Array, bias_B11S: jax.Array) -> jax.Array:
        """One layer: `self` holds that layer's slice of every parameter."""
        B, T, D = x_BTD.shape
        heads = self.settings.heads
        qkv = (x_BTD @ self.qkv_kernel[...] + self.qkv_bias[...]).reshape(B, T, 3, heads, D // heads)
        q_BTHK, k_BSHK, v_BSHK = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK * (D // heads) ** -0.5, k_BSHK) + bias_B11S
        mixed_BTHK = jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(logits_BHTS, axis=-1), v_BSHK)
        attended_BTD = mixed_BTHK.reshape(B, T, D) @ self.out_kernel[...] + self.out_bias[...]
        epsilon = self.settings.epsilon
        x_BTD = layer_norm(x_BTD + attended_BTD, self.attention_scale[...], self.attention_shift[...], epsilon)
        up = jax.nn.gelu(x_BTD @ self.up_kernel[...] + self.up_bias[...], approximate=False)
        down_BTD = up @ self.down_kernel[...] + self.down_bias[...]
        return layer_norm(x_BTD + down_BTD, self.mlp_scale[...], self.mlp_shift[...], epsilon)

    def __call__(self, x_BTD: jax.Array, bias_B11S: jax.Array) -> jax.Array:
        graphdef, stacked = nnx.split(self)
        step = lambda x, layer: (nnx.merge(graphdef, layer).one(x, bias_B11S), None)  # noqa: E731
        return jax.lax.scan(step, x_BTD, stacked)[0]


class Bert(nnx.Module):
    """BERT up to the sentence vector: embeddings, layers, mean over the real tokens, unit length."""

    def __init__(self, settings: BertSettings):
        width = settings.width
        self.settings = settings
        self.word_embedding = nnx.Param(jnp.zeros((settings.words, width)))
        self.position_embedding = nnx.Param(jnp.zeros((settings.positions, width)))
        self.type_embedding = nnx.Param(jnp.zeros((width,)))  # of the only segment, A
        self.scale = nnx.Param(jnp.ones((width,)))
        self.shift = nnx.Param(jnp.zeros((width,)))
        self.layers = BertLayers(settings)

    def __call__(self, ids_BT: jax.Array, length_B: jax.Array) -> jax.Array:
        """Unit vectors [B, D] float32 of right-padded word pieces `ids_BT`, `length_B` of them real.

        Products are true float32 on every device (a TPU's default of bfloat16 would move a cosine by a percent).
        """
        with jax.default_matmul_precision("float32"):
            T = ids_BT.shape[1]
            mask_BT = jnp.arange(T) < length_B[:, None]
            x_BTD = self.word_embedding[...][ids_BT] + self.position_embedding[...][:T] + self.type_embedding[...]
            x_BTD = layer_norm(x_BTD, self.scale[...], self.shift[...], self.settings.epsilon)
            bias_B11S = jnp.where(mask_BT, 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
            x_BTD = self.layers(x_BTD, bias_B11S)
            mean_BD = jnp.sum(x_BTD * mask_BT[..., None], axis=1) / jnp.maximum(length_B, 1)[:, None]
            return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-12)


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float) -> jax.Array:
    """Layer normalisation over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon) * scale + shift


class MiniLM:
    """A sentence encoder ready for text: WordPiece, the network and its weights, compiled once a shape."""

    def __init__(self, bert: Bert, tokenizer: Tokenizer, max_tokens: int = 128):
        if not 2 < max_tokens <= bert.settings.positions:
            raise InputError(
                f"--config.encoder.max_tokens is {max_tokens}; this encoder takes 3 to {bert.settings.positions}"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self.tokenizer, self.max_tokens, self.width = tokenizer, max_tokens, bert.settings.width
        self.buckets = (*(b for b in BUCKETS if b < max_tokens), max_tokens)
        self.settings = bert.settings
        graphdef, self.params = nnx.split(bert)
        self._apply = jax.jit(lambda params, ids_BT, length_B: nnx.merge(graphdef, params)(ids_BT, length_B))

    def host_arrays(self) -> dict[str, Any]:
        """The weights as nested NumPy arrays."""
        return jax.tree.map(np.asarray, nnx.to_pure_dict(self.params))

    @classmethod
    def load(cls, folder: pathlib.Path | str, max_tokens: int = 128) -> MiniLM:
        """Reads a sentence-transformers folder: `config.json`, `tokenizer.json`, `model.safetensors`.

        Raises:
          InputError: a file is missing or unreadable, or the model is not a mean-pooled BERT.
        """
        folder = pathlib.Path(folder)
        settings = read_settings(folder)
        tokenizer = read_tokenizer(folder / "tokenizer.json", settings.words)
        bert = nnx.eval_shape(lambda: Bert(settings))
        graphdef, abstract = nnx.split(bert)
        arrays = read_weights(folder / "model.safetensors", settings)
        nnx.replace_by_pure_dict(abstract, jax.tree.map(jnp.asarray, arrays))
        return cls(nnx.merge(graphdef, abstract), tokenizer, max_tokens)

    def encode(
        self, texts: Sequence[str], batch_tokens: int = 4096, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Unit vectors of the texts, float32 [n, D]; each text is cut to `max_tokens` word pieces.

        Texts are taken longest first, as many at once as `batch_tokens` padded word pieces hold: a full batch of
        a bucket always has the same shape, so at most two shapes a bucket compile and little padding is computed.

        Args:
          texts: any strings, empty ones too.
          batch_tokens: word pieces computed at once, padding included.
          progress: called after each batch with (texts done, texts in all).
        """
        # A lone surrogate (half an emoji in JSON) is no Unicode text: '?' in its place.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        pieces = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(clean)]
        order = sorted(range(len(pieces)), key=lambda n: -len(pieces[n]))
        out = np.zeros((len(pieces), self.width), np.float32)
        at = 0
        while at < len(order):
            width = next(b for b in self.buckets if b >= len(pieces[order[at]]))
            full = max(batch_tokens // width, FEW)
            rows = FEW if len(order) - at <= FEW else full
            chosen = order[at : at + rows]
            ids_BT = np.zeros((rows, width), np.int32)
            length_B = np.ones(rows, np.int32)
            for row, n in enumerate(chosen):
                length_B[row] = len(pieces[n])
                ids_BT[row, : length_B[row]] = pieces[n]
            out[chosen] = np.asarray(self._apply(self.params, ids_BT, length_B))[: len(chosen)]
            at += len(chosen)
            if progress:
                progress(at, len(order))
        return out


def read_settings(folder: pathlib.Path) -> BertSettings:
    """The network's sizes from `config.json`; `InputError` where the folder is not a mean-pooled BERT."""
    path = folder / "config.json"
    config = read_json(path)
    for field, wanted in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        found = config.get(field, wanted)
        if found != wanted:
            raise InputError(f"{path}: {field} is {found!r:.80}; the Flax encoder is a BERT and needs {wanted!r}")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens", True):
        raise InputError(f"{pooling}: the model is not mean-pooled, which the Flax encoder needs")
    sizes = dict[str, int]()
    for name, field in SIZES.items():
        size = config.get(field)
        if type(size) is not int or not 0 < size <= MOST_SIZE:
            given = "is missing" if size is None else f"is {size!r:.80}, expected a size"
            raise InputError(f"{path}: field {field!r} {given}; not a BERT config")
        sizes[name] = size
    epsilon = config.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 < epsilon < 1 or sizes["width"] % sizes["heads"]:
        raise InputError(f"{path}: layer_norm_eps or num_attention_heads do not fit; not a BERT config")
    return BertSettings(**sizes, epsilon=epsilon)


def read_tokenizer(path: pathlib.Path, words: int) -> Tokenizer:
    """A tokenizer whose ids are those of `words` word pieces; `InputError` for another file."""
    text = json.dumps(read_json(path))
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids]
    except BaseException as error:  # the library raises bare Exception, and what panics in it is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path}: not a tokenizer ({error!s:.200})") from None
    if max(ids, default=0) >= words:
        raise InputError(f"{path}: has a word piece {max(ids)}, config.json says {words} of them")
    return tokenizer


def read_weights(path: pathlib.Path, settings: BertSettings) -> dict[str, Any]:
    """The parameters of `Bert` as a nested dict of float32 arrays, from a Hugging Face BERT checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if "position_ids" not in name]  # noqa: SIM118 (not a mapping)
            arrays = {name.removeprefix("bert."): file.get_tensor(name) for name in names}
    except Exception as error:  # SafetensorError, FileNotFoundError, TypeError (a dtype NumPy lacks)
        raise InputError(f"{path}: not readable as safetensors ({error!s:.200})") from None
    odd = next((name for name, a in arrays.items() if a.dtype.kind != "f" or not np.isfinite(a).all()), None)
    if odd is not None:
        raise InputError(f"{path}: tensor {odd!r} holds what is no finite number")
    take = functools.partial(_take, path, arrays)
    D, hidden = settings.width, settings.hidden
    types = max(1, *arrays.get("embeddings.token_type_embeddings.weight", np.zeros(1)).shape[:1])

    def stack(name: str, *shape: int) -> np.ndarray:
        layers = [take(f"encoder.layer.{n}.{name}", shape) for n in range(settings.layers)]
        return np.stack([np.ascontiguousarray(layer.T) for layer in layers])

    qkv = [f"attention.self.{name}" for name in ("query", "key", "value")]
    return {
        "word_embedding": take("embeddings.word_embeddings.weight", (settings.words, D)),
        "position_embedding": take("embeddings.position_embeddings.weight", (settings.positions, D)),
        "type_embedding": take("embeddings.token_type_embeddings.weight", (types, D))[0],
        "scale": take("embeddings.LayerNorm.weight", (D,)),
        "shift": take("embeddings.LayerNorm.bias", (D,)),
        "layers": {
            "qkv_kernel": np.concatenate([stack(f"{name}.weight", D, D) for name in qkv], axis=-1),
            "qkv_bias": np.concatenate([stack(f"{name}.bias", D) for name in qkv], axis=-1),
            "out_kernel": stack("attention.output.dense.weight", D, D),
            "out_bias": stack("attention.output.dense.bias", D),
            "attention_scale": stack("attention.output.LayerNorm.weight", D),
            "attention_shift": stack("attention.output.LayerNorm.bias", D),
            "up_kernel": stack("intermediate.dense.weight", hidden, D),
            "up_bias": stack("intermediate.dense.bias", hidden),
            "down_kernel": stack("output.dense.weight", D, hidden),
            "down_bias": stack("output.dense.bias", D),
            "mlp_scale": stack("output.LayerNorm.weight", D),
            "mlp_shift": stack("output.LayerNorm.bias", D),
        },
    }


def _take(path: pathlib.Path, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"{path}: tensor {name!r} is missing; not a BERT checkpoint")
    if arrays[name].shape != shape:
        raise InputError(f"{path}: tensor {name!r} is {arrays[name].shape}, config.json says {shape}")
    return arrays[name].astype(np.float32)
