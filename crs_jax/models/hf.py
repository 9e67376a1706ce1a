"""GPT-2 weights in and out of the Hugging Face format: `config.json` and safetensors, without torch.

A checkpoint is GPT-2's words, positions and layers. Control tokens, items and heads are this project's: they keep their
first values on the way in. On the way out the controls stand behind the words, so that a reply can end; what is left
out is named.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.policy import Layout, Policy
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.storage import is_folder

REVISIONS = {  # of the hub's repositories under their short names
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}
FLAG = "--config.model.init"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONTROLS = "control_tokens"  # in config.json: how many of the last rows are no words of GPT-2's
# Tensor of one layer -> (parameter of `Block`, its axes in config.json's letters; C is query, key, value).
LAYER = {
    "ln_1.weight": ("ln1_scale", "D"),
    "ln_1.bias": ("ln1_bias", "D"),
    "attn.c_attn.weight": ("qkv_kernel", "DCHK"),
    "attn.c_attn.bias": ("qkv_bias", "CHK"),
    "attn.c_proj.weight": ("out_kernel", "HKD"),
    "attn.c_proj.bias": ("out_bias", "D"),
    "ln_2.weight": ("ln2_scale", "D"),
    "ln_2.bias": ("ln2_bias", "D"),
    "mlp.c_fc.weight": ("up_kernel", "DF"),
    "mlp.c_fc.bias": ("up_bias", "F"),
    "mlp.c_proj.weight": ("down_kernel", "FD"),
    "mlp.c_proj.bias": ("down_bias", "D"),
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """GPT-2 weights, float32 on the host.

    Attributes:
      config: the trunk's shape; dropout, dtype and remat are defaults (`dataclasses.replace` them).
      words: `[V, D]` word embeddings, tied to the output.
      trunk: parameters of `Trunk` as a nested dict.
      source: where they came from, for messages.
    """

    config: GPT2Config
    words: np.ndarray
    trunk: dict[str, Any]
    source: str

    @property
    def spread(self) -> float:
        """Standard deviation of word embeddings around their mean, which may be large and says nothing of a word."""
        return float((self.words - self.words.mean(0)).std())


def hub_id(source: str) -> tuple[str, str]:
    """Repository and revision of a name in `REVISIONS` or of `owner/name@revision`; `InputError` for other names."""
    short = source.removeprefix("openai-community/").removeprefix("distilbert/")
    repository, revision = REVISIONS.get(short, (source, ""))
    if not revision:
        repository, _, revision = source.partition("@")
        if not revision or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            known = ", ".join(REVISIONS)
            raise InputError(
                f"{FLAG}={source}: no such folder, and a hub id needs its revision: owner/name@commit, or {known}"
            )
    return repository, revision


def find_gpt2(source: str) -> pathlib.Path:
    """Folder of a checkpoint: `source` itself where it is a folder, else the hub's snapshot of it.

    Args:
      source: a folder, a name in `REVISIONS`, or `owner/name@revision`.

    Raises:
      InputError: neither a folder nor on the hub, or a hub id without a revision.
    """
    if is_folder(source):
        return pathlib.Path(source).expanduser()
    repository, revision = hub_id(source)
    from huggingface_hub import snapshot_download

    try:
        wanted = ["config.json", "model*.safetensors", INDEX]
        return pathlib.Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # offline, no such repository or revision, no space, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{FLAG}={source}: not a folder here, and not to be had from the hub ({reason})") from None


def load_gpt2(source: str | os.PathLike[str]) -> Checkpoint:
    """Reads a GPT-2 checkpoint: one safetensors file or a sharded set, names with or without `transformer.`.

    Half-precision tensors become float32, which all parameters are.

    Args:
      source: as for `find_gpt2`.

    Raises:
      InputError: not GPT-2, a variant whose arithmetic differs, an untied output, pickled weights, or a tensor that is
        missing or of another shape than `config.json` says.
    """
    folder = find_gpt2(os.fspath(source))
    config, num_words, controls = read_config(folder / "config.json")
    arrays = _read_arrays(folder)
    D, H, K = config.width, config.heads, config.head_width
    sizes = {"D": D, "H": H, "K": K, "C": 3, "F": 4 * D}

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{folder}: tensor {name!r} is missing; not a GPT-2 checkpoint")
        if arrays[name].shape != shape:
            raise InputError(f"{folder}: tensor {name!r} is {arrays[name].shape}, config.json says {shape}")
        return arrays[name].astype(np.float32)

    def layers(name: str, axes: str) -> np.ndarray:
        shape = tuple(sizes[axis] for axis in axes)
        flat = _flat(shape, axes)
        return np.stack([take(f"h.{n}.{name}", *flat).reshape(shape) for n in range(config.layers)])

    words_VD = take("wte.weight", num_words + controls, D)[:num_words]
    output_VD = arrays.get("lm_head.weight", arrays["wte.weight"])
    if not np.array_equal(output_VD[:num_words], words_VD):
        raise InputError(f"{folder}: lm_head.weight differs from wte.weight; only tied embeddings are supported")
    trunk = {
        "positions": take("wpe.weight", config.positions, D),
        "final_scale": take("ln_f.weight", D),
        "final_bias": take("ln_f.bias", D),
        "blocks": {parameter: layers(name, axes) for name, (parameter, axes) in LAYER.items()},
    }
    return Checkpoint(config, words_VD, trunk, os.fspath(source))


def read_config(path: pathlib.Path) -> tuple[GPT2Config, int, int]:
    """The trunk's shape, and the numbers of words and of this project's controls behind them, of a `config.json`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = {name: config[name] for name in ("model_type", "n_layer", "n_embd", "n_head", "vocab_size")}
        positions = config.get("n_positions", config.get("n_ctx", 1024))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error!s:.200})") from None
    except KeyError as error:
        raise InputError(f"{path}: field {error.args[0]!r} is missing; not a GPT-2 config") from None
    width = found["n_embd"]
    for field, legal in (
        ("model_type", ("gpt2",)),
        ("activation_function", ("gelu_new", "gelu_pytorch_tanh")),
        ("n_inner", (None, 4 * width)),
        ("scale_attn_weights", (True,)),
        ("scale_attn_by_inverse_layer_idx", (False,)),
        ("add_cross_attention", (False,)),
    ):
        value = config.get(field, legal[0])
        if value not in legal:
            raise InputError(f"{path}: {field} is {value!r}; this GPT-2 needs {legal[0]!r}")
    shape = GPT2Config(
        found["n_layer"], width, found["n_head"], positions, epsilon=config.get("layer_norm_epsilon", 1e-5)
    )
    if shape.width % shape.heads:
        raise InputError(f"{path}: n_embd {shape.width} is not a multiple of n_head {shape.heads}")
    controls = config.get(CONTROLS, 0)
    return shape, found["vocab_size"] - controls, controls


def fill(policy: Policy, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's words, positions and layers into a policy, in place.

    A policy with fewer positions takes the first ones. Control tokens and items, which GPT-2 never saw, keep their
    first values; the policy reads them around the mean word (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Raises:
      InputError: another shape, or another number of words than the policy's tokenizer has.
    """
    ours, theirs, layout = policy.trunk.config, checkpoint.config, policy.layout
    for field, flag in (("layers", "layers"), ("width", "width"), ("heads", "heads"), ("epsilon", "epsilon")):
        if getattr(ours, field) != getattr(theirs, field):
            raise InputError(
                f"{FLAG}={checkpoint.source}: {flag} is {getattr(theirs, field)}, the model has {getattr(ours, field)}"
            )
    if ours.positions > theirs.positions:
        raise InputError(
            f"--config.model.positions is {ours.positions}; {checkpoint.source} has only {theirs.positions}"
        )
    if len(checkpoint.words) != layout.num_words:
        raise InputError(
            f"{FLAG}={checkpoint.source}: {len(checkpoint.words)} words, the tokenizer has {layout.num_words}; "
            "set --config.tokenizer.kind=gpt2"
        )
    words = np.array(policy.words[...])
    words[: layout.num_words] = checkpoint.words
    policy.words[...] = jnp.asarray(words)
    trunk = {**checkpoint.trunk, "positions": checkpoint.trunk["positions"][: ours.positions]}
    nnx.update(policy.trunk, jax.tree.map(jnp.asarray, trunk))


def vocabulary(policy: Policy) -> np.ndarray:
    """`[V + 6, D]` input embeddings of words and controls, in the order of their ids."""
    words_VD = np.asarray(policy.words[...])[: policy.layout.num_words]
    mean_D = np.asarray(policy.tables().mean_D)
    return np.concatenate([words_VD, mean_D + np.asarray(policy.controls[...])])


def export_gpt2(policy: Policy, folder: str | os.PathLike[str], ending_D: np.ndarray | None = None) -> list[str]:
    """Writes the GPT-2 part of a policy to a folder that transformers' `AutoModelForCausalLM` loads.

    Log-probabilities of the loaded model over words are those of the policy, given the same words and controls. The
    logit of `<|end|>` is the hidden state times `ending_D` (`tools/export/ending.py`), where given: the output is no
    longer tied then.

    Returns:
      What the format has no place for and the folder lacks; its README.md says the same.
    """
    folder, layout, config = pathlib.Path(folder), policy.layout, policy.trunk.config
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(policy.trunk, nnx.Param)))
    arrays = {
        "transformer.wte.weight": vocabulary(policy),
        "transformer.wpe.weight": host["positions"],
        "transformer.ln_f.weight": host["final_scale"],
        "transformer.ln_f.bias": host["final_bias"],
    }
    for name, (parameter, axes) in LAYER.items():
        for n, array in enumerate(host["blocks"][parameter]):
            arrays[f"transformer.h.{n}.{name}"] = array.reshape(_flat(array.shape, axes))
    if ending_D is not None:
        output = vocabulary(policy)
        output[layout.end] = ending_D
        arrays["lm_head.weight"] = output
    contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    settings = exported_settings(config, layout, tied=ending_D is None)
    left_out = [
        f"{layout.num_items} items (content projection, residuals, biases) and what they are matched with",
        "the tokenizer, the grammar of act and words, and all heads",
    ]
    readme = ["# The GPT-2 part of a crs_jax recommender", "", "Not in this folder:", *(f"- {x}" for x in left_out)]
    save_file(contiguous, folder / SINGLE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("\n".join(readme) + "\n", encoding="utf-8")
    return left_out


def exported_settings(config: GPT2Config, layout: Layout, tied: bool) -> dict[str, Any]:
    """The `config.json` that `export_gpt2` writes."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_positions": config.positions,
        "n_ctx": config.positions,
        "n_inner": None,
        "vocab_size": layout.item_offset,
        CONTROLS: layout.item_offset - layout.num_words,
        "layer_norm_epsilon": config.epsilon,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": layout.end,
        "pad_token_id": layout.pad,
        "torch_dtype": "float32",
    }


def exported_shapes(config: GPT2Config, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name to shape of the tensors that `export_gpt2` writes where the output is not tied."""
    D, V = config.width, layout.item_offset
    sizes = {"D": D, "H": config.heads, "K": config.head_width, "C": 3, "F": 4 * D}
    shapes = {"wte.weight": (V, D), "wpe.weight": (config.positions, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for name, (_, axes) in LAYER.items():
        shape = _flat(tuple(sizes[axis] for axis in axes), axes)
        shapes |= {f"h.{n}.{name}": shape for n in range(config.layers)}
    return {"lm_head.weight": (V, D), **{f"transformer.{name}": shape for name, shape in shapes.items()}}


def _flat(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """The shape Hugging Face gives a parameter: one axis for C, H and K together."""
    if "K" not in axes:
        return shape
    heads = int(np.prod([size for axis, size in zip(axes, shape, strict=True) if axis in "CHK"]))
    return (shape[0], heads) if axes[0] == "D" else (heads, shape[-1]) if axes[-1] == "D" else (heads,)


def _read_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a folder by name, without the prefix `transformer.`."""
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX}: not an index of safetensors files ({error!r})") from None
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickled[0]}, a pickle, which can run code and is refused" if pickled else "no weights"
        raise InputError(f"{folder}: {found}; {SINGLE} is needed (save_pretrained writes it)")
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    arrays[key.removeprefix("transformer.")] = file.get_tensor(key)
        except Exception as error:  # SafetensorError, FileNotFoundError
            raise InputError(f"{folder / name}: not readable as safetensors ({error!s:.200})") from None
    return arrays
