"""The registry of decoders: what language model stands under the recommender, an entry each.

A decoder is the class of its config: sizes, how they follow from `config.model` or from a checkpoint, the trunk that
they make, and the names that Hugging Face's format has for its parameters. `models/gpt2.py` is one;
`models/transformer.py` has what most share. An entry imports its class when it is asked for it, so that the config can
ask the registry without waiting for JAX.
"""

from __future__ import annotations

import abc
import dataclasses
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ml_collections import ConfigDict

from crs_jax.runtime.registry import Registry

if TYPE_CHECKING:
    from flax import nnx

    from crs_jax.models.transformer import Trunk


@dataclasses.dataclass(frozen=True)
class DecoderConfig(abc.ABC):
    """Sizes of a decoder, and what only its kind knows.

    The parameters of its trunk have a rate and a place on the mesh by their names: matrices end in `_kernel`, and those
    called as in `runtime/sharding.py` are cut as it says.

    Attributes:
      layers, width, heads: L, D and H.
      positions: the longest row, in tokens.
      dropout: of embeddings and residual branches, where a key is given.
      dtype: of activations; parameters are float32.
      remat: layers are computed again in the backward pass.
      epsilon: of the norms.
      attention: over whole sequences by `xla` or `cudnn` (`models/attention.py`); decoding is by XLA.
      model_type, architecture: in `config.json`; the registry's name, and transformers' class, empty where it has none.
      prefix: of the names of tensors, which a file may leave out; the output table has none.
      words: the name of the word table.
      tensors: name to parameter of the trunk and axes as the file has them, commas between: `D,CHK` is a matrix that
        holds D, C, H and K; `HK,D->DHK` one whose parameter has another order. A name with `{n}` is one of each layer,
        and its parameter, stacked, is in `trunk.blocks`. A table of positions has the axis T.
      revisions: repositories and commits on the hub by short names.
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

    model_type: ClassVar[str]
    architecture: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    words: ClassVar[str]
    tensors: ClassVar[Mapping[str, tuple[str, str]]]
    revisions: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """J: heads of keys and values, each read by H / J heads of queries."""
        return self.heads

    @property
    def tied(self) -> bool:
        """Words are predicted by the table that embeds them; else by one of its own."""
        return True

    @property
    def sizes(self) -> dict[str, int]:
        """Of the axes in `tensors`; a kind adds its own."""
        return {"D": self.width, "H": self.heads, "J": self.kv_heads, "K": self.head_width, "T": self.positions}

    @classmethod
    def from_settings(cls, model: ConfigDict) -> Self:
        """By `config.model`; what it does not say is the kind's own."""
        return cls(
            *(model.layers, model.width, model.heads, model.positions, model.dropout, model.dtype),
            remat=model.remat,
            attention=model.attention,
        )

    @classmethod
    @abc.abstractmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """By a checkpoint's `config.json`.

        Raises:
          KeyError: a field is missing.
          ValueError: one has a value that this kind does not have; names both.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, and whatever else transformers needs; the vocabulary is not the decoder's."""

    @abc.abstractmethod
    def trunk(self, rngs: nnx.Rngs) -> Trunk:
        """The module, at its first values."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """An entry of the registry, by the `model_type` of its checkpoints.

    Attributes:
      title: as people call it.
      source: the class of its config, or `module:class`.
      tokenizer: the `tokenizer.kind` that its checkpoints on the hub need; empty: any.
    """

    title: str
    source: type[DecoderConfig] | str
    tokenizer: str = ""

    @property
    def config(self) -> type[DecoderConfig]:
        """The class itself."""
        return pkgutil.resolve_name(self.source) if isinstance(self.source, str) else self.source


DECODERS = Registry("decoder", {"gpt2": Decoder("GPT-2", "crs_jax.models.gpt2:GPT2Config", tokenizer="gpt2")})


def expect(found: Mapping[str, Any], legal: Mapping[str, Sequence[Any]]) -> None:
    """`ValueError` for the first field of a `config.json` without one of its legal values; the first is the default."""
    for field, values in legal.items():
        if found.get(field, values[0]) not in values:
            raise ValueError(f"{field} is {found[field]!r:.80}, where this program has {values[0]!r} alone")
