"""A decoder's weights in and out of the Hugging Face format: `config.json` and safetensors, without torch.

A checkpoint is words and the trunk, by the names that its decoder has for them (`models/decoder.py`). Control tokens,
items and heads are this project's: they keep their first values on the way in. On the way out the controls stand behind
the words, so that a reply can end; what is left out is named.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from crs_jax.models.decoder import DECODERS, DecoderConfig
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.models.weights import FLAG, SINGLE, find, read_arrays
from crs_jax.runtime.errors import InputError

OUTPUT = "lm_head.weight"
CONTROLS = "control_tokens"  # in config.json: how many of the last rows are no words of the decoder's
OWN = ("positions", "dropout", "dtype", "remat", "attention")  # what a model may have otherwise than its checkpoint


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights of a decoder, float32 on the host.

    Attributes:
      config: the decoder; dropout, dtype and remat are defaults (`dataclasses.replace` them).
      words: `[V, D]` word embeddings.
      trunk: parameters of its trunk as a nested dict.
      source: where they came from, for messages.
      output: `[V, D]` what predicts words, where these are other vectors.
    """

    config: DecoderConfig
    words: np.ndarray
    trunk: dict[str, Any]
    source: str
    output: np.ndarray | None = None

    @property
    def spread(self) -> float:
        """Standard deviation of word embeddings around their mean, which may be large and says nothing of a word."""
        return float((self.words - self.words.mean(0)).std())


def load(source: str | os.PathLike[str], decoder: str = "") -> Checkpoint:
    """Reads a checkpoint: one safetensors file or a sharded set, names with or without the decoder's prefix.

    Half-precision tensors become float32, which all parameters are.

    Args:
      source: as for `find`.
      decoder: which it has to be; empty: any that is registered.

    Raises:
      InputError: of no or another decoder, a variant whose arithmetic differs, an untied output where the decoder has
        none, pickled weights, or a tensor that is missing or of another shape than `config.json` says.
    """
    folder = find(os.fspath(source))
    config, num_words, controls = read_config(folder / "config.json", decoder)
    arrays = read_arrays(folder, config.prefix)

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays:
            title = DECODERS[config.model_type].title
            raise InputError(f"{folder}: tensor {name!r} is missing; not a {title} checkpoint")
        if arrays[name].shape != shape:
            raise InputError(f"{folder}: tensor {name!r} is {arrays[name].shape}, config.json says {shape}")
        return arrays[name].astype(np.float32)

    def table(name: str) -> np.ndarray:
        return take(name, (num_words + controls, config.width))[:num_words]

    trunk: dict[str, Any] = {"blocks": {}}
    for name, (parameter, axes) in config.tensors.items():
        form = _form(config, axes)
        found = [form.inwards(take(each, form.theirs)) for each in _names(config, name)]
        if "{n}" in name:
            trunk["blocks"][parameter] = np.stack(found)
        else:
            (trunk[parameter],) = found
    words_VD = table(config.words)
    output_VD = words_VD if config.tied and OUTPUT not in arrays else table(OUTPUT)
    same = np.array_equal(output_VD, words_VD)
    if config.tied and not same:
        raise InputError(f"{folder}: {OUTPUT} differs from {config.words}; only tied embeddings are supported")
    return Checkpoint(config, words_VD, trunk, os.fspath(source), None if same else output_VD)


def read_config(path: pathlib.Path, decoder: str = "") -> tuple[DecoderConfig, int, int]:
    """The decoder, and the numbers of words and of this project's controls behind them, of a `config.json`.

    Raises:
      InputError: its `model_type` is that of no decoder, or not `decoder`, where that is given; or it cannot be used.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kind = str(found.get("model_type"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not readable as a JSON object ({error!s:.200})") from None
    known = f"the decoders are {', '.join(DECODERS)}"
    if kind not in DECODERS:
        raise InputError(f"{path}: model_type is {kind!r:.80}, which no decoder has; {known}")
    if decoder not in ("", kind):
        raise InputError(f"{path}: model_type is {kind!r}; give --config.model.decoder={kind}, not {decoder} ({known})")
    title = DECODERS[kind].title
    try:
        config, controls = DECODERS[kind].config.from_json(found), found.get(CONTROLS, 0)
        num_words = found["vocab_size"] - controls
    except KeyError as error:
        raise InputError(f"{path}: field {error.args[0]!r} is missing; not a {title} config") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not a {title} that this program has: {error!s:.200}") from None
    for name in ("layers", "width", "heads", "positions"):
        size = getattr(config, name)
        if type(size) is not int or size < 1:
            raise InputError(f"{path}: not a {title} config: {name} is {size!r:.80}, expected a whole number above 0")
    return config, num_words, controls


def fill(policy: Policy, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's words and trunk into a policy, in place.

    A policy with fewer positions takes the first ones. Control tokens and items, which the decoder never saw, keep
    their first values; the policy reads them around the mean word (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Raises:
      InputError: another shape, or another number of words than the policy's tokenizer has.
    """
    ours, theirs, num_words = policy.trunk.config, checkpoint.config, policy.layout.num_words
    sizes = {field.name: (getattr(theirs, field.name), getattr(ours, field.name)) for field in dataclasses.fields(ours)}
    sizes["tied"] = (checkpoint.output is None, policy.output is None or checkpoint.output is None)
    for name, (their, own) in sizes.items():
        if their != own and name not in OWN:
            raise InputError(f"{FLAG}={checkpoint.source}: {name} is {their}, the model has {own}")
    if ours.positions > theirs.positions:
        raise InputError(
            f"--config.model.positions is {ours.positions}; {checkpoint.source} has only {theirs.positions}"
        )
    if len(checkpoint.words) != num_words:
        kind = DECODERS[theirs.model_type].tokenizer
        raise InputError(
            f"{FLAG}={checkpoint.source}: {len(checkpoint.words)} words, the tokenizer has {num_words}"
            + (f"; set --config.tokenizer.kind={kind}" if kind else "")
        )
    output_VD = checkpoint.words if checkpoint.output is None else checkpoint.output
    for param, table_VD in ((policy.words, checkpoint.words), (policy.output, output_VD)):
        if param is not None:
            param[...] = jnp.asarray(param[...]).at[:num_words].set(table_VD)

    def first(blank: jax.Array, array: np.ndarray) -> jax.Array:  # a table of positions may be longer
        return jnp.asarray(array[: len(blank)])

    blank = nnx.to_pure_dict(nnx.state(policy.trunk, nnx.Param))
    nnx.update(policy.trunk, jax.tree.map(first, blank, checkpoint.trunk))


def vocabulary(policy: Policy) -> np.ndarray:
    """`[V + 6, D]` input embeddings of words and controls, in the order of their ids."""
    words_VD = np.asarray(policy.words[...])[: policy.layout.num_words]
    mean_D = np.asarray(policy.tables().mean_D)
    return np.concatenate([words_VD, mean_D + np.asarray(policy.controls[...])])


def export(policy: Policy, folder: str | os.PathLike[str], ending_D: np.ndarray | None = None) -> list[str]:
    """Writes words, controls and trunk to a folder that transformers' `AutoModelForCausalLM` loads.

    Log-probabilities of the loaded model over words are those of the policy, given the same words and controls. The
    logit of `<|end|>` is the hidden state times `ending_D` (`tools/export/ending.py`), where given: the output is no
    longer tied then.

    Returns:
      What the format has no place for and the folder lacks; its README.md says the same.
    """
    folder, layout, config = pathlib.Path(folder), policy.layout, policy.trunk.config
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(policy.trunk, nnx.Param)))
    arrays = {config.prefix + config.words: vocabulary(policy)}
    for name, (parameter, axes) in config.tensors.items():
        found = host["blocks"][parameter] if "{n}" in name else host[parameter][None]
        for each, array in zip(_names(config, name), found, strict=True):
            arrays[config.prefix + each] = _form(config, axes).outwards(array)
    tied = policy.output is None and ending_D is None
    if not tied:
        arrays[OUTPUT] = output = vocabulary(policy)
        if policy.output is not None:  # controls, which it has none of, are as likely as the mean word
            output[: layout.num_words] = np.asarray(policy.output[...])[: layout.num_words]
            output[layout.num_words :] = output[: layout.num_words].mean(0)
        if ending_D is not None:
            output[layout.end] = ending_D
    contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    left_out = [
        f"{layout.num_items} items (content projection, residuals, biases) and what they are matched with",
        "the tokenizer, the grammar of act and words, and all heads",
    ]
    title = DECODERS[config.model_type].title
    readme = [f"# The {title} part of a crs_jax recommender", "", "Not in this folder:", *(f"- {x}" for x in left_out)]
    save_file(contiguous, folder / SINGLE, metadata={"format": "pt"})
    settings = json.dumps(exported_settings(config, layout, tied), indent=2)
    (folder / "config.json").write_text(settings + "\n", encoding="utf-8")
    (folder / "README.md").write_text("\n".join(readme) + "\n", encoding="utf-8")
    return left_out


def exported_settings(config: DecoderConfig, layout: Layout, tied: bool) -> dict[str, Any]:
    """The `config.json` that `export` writes."""
    return {
        "architectures": [config.architecture],
        "model_type": config.model_type,
        **config.to_json(),
        "vocab_size": layout.item_offset,
        CONTROLS: layout.item_offset - layout.num_words,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": layout.end,
        "pad_token_id": layout.pad,
        "torch_dtype": "float32",
    }


def exported_shapes(config: DecoderConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name to shape of the tensors that `export` writes where the output is not tied."""
    trunk = {config.prefix + name: shape for name, shape in trunk_shapes(config).items()}
    return dict.fromkeys((OUTPUT, config.prefix + config.words), (layout.item_offset, config.width)) | trunk


def trunk_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name, without its prefix, to shape of the tensors of a trunk."""
    tensors = config.tensors.items()
    return {each: _form(config, axes).theirs for name, (_, axes) in tensors for each in _names(config, name)}


class _Form(NamedTuple):
    """A tensor in a file and as a parameter.

    Attributes:
      theirs: shape in the file.
      apart: with every axis by itself.
      order: of those axes in the parameter.
    """

    theirs: tuple[int, ...]
    apart: tuple[int, ...]
    order: tuple[int, ...]

    def inwards(self, array: np.ndarray) -> np.ndarray:
        """The parameter."""
        return array.reshape(self.apart).transpose(self.order)

    def outwards(self, array: np.ndarray) -> np.ndarray:
        """The tensor."""
        return array.transpose(np.argsort(self.order)).reshape(self.theirs)


def _form(config: DecoderConfig, axes: str) -> _Form:
    theirs, _, ours = axes.partition("->")
    letters, sizes = theirs.replace(",", ""), config.sizes
    flat = tuple(math.prod(sizes[axis] for axis in group) for group in theirs.split(","))
    return _Form(flat, tuple(sizes[axis] for axis in letters), tuple(letters.index(axis) for axis in ours or letters))


def _names(config: DecoderConfig, name: str) -> list[str]:
    """Of the tensors that a name of the decoder's table stands for."""
    return [name.format(n=n) for n in range(config.layers if "{n}" in name else 1)]
