"""What an exported folder holds is checked before anything is made of it: it may come from anybody.

The sums in `crs_jax.json` are of whoever made the folder and find only damage. So every file, field and array is
checked by itself and against the others: names, types, shapes and ranges, sizes before anything of that size is
allocated.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.records import is_plain
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.features.attributes import Attributes
from crs_jax.inputs.task import model_config, policy_shapes, token_layout
from crs_jax.models.encoder import FILES
from crs_jax.models.hf import exported_settings, exported_shapes
from crs_jax.models.items import padded
from crs_jax.models.weights import SINGLE
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import MOST_JSON, numbered_json_lines, plain, read_json
from crs_jax.runtime.storage import sha256
from crs_jax.runtime.versions import KEY, check, path_now, settings_now
from crs_jax.stored_config import stored_config
from crs_jax.tools.export import ABOUT, shared_model
from crs_jax.tools.export.tensors import Shape, read_arrays, read_shapes, refuse_other
from crs_jax.tools.export.transformers_files import completed_words, generation_settings, tokenizer_settings

REST, ITEMS, WORDS, ENCODER = "crs_jax.safetensors", "items.jsonl", "tokenizer.json", "encoder"
NAMES = (
    *("config.json", SINGLE, "generation_config.json", WORDS, "tokenizer_config.json", REST),
    *("dialogue_tokenizer.json", ITEMS),
)
"""All files but `crs_jax.json`, the model card and an encoder of the user's."""
SHARED = ("words", "output", "trunk")  # of the parameters: what transformers' part holds
SPARSE = tuple(f"evidence/together/{name}" for name in ("data", "indices", "indptr"))
LONGEST = 10_000  # characters of a text of an item
MOST_ITEM_BYTES = 2**32  # of all items
YEARS = (-9999, 9999)
MOST_COUNT = 1e9  # training dialogues that name an item


@dataclasses.dataclass(frozen=True)
class Checked:
    """What the files of an exported folder say.

    Attributes:
      model: ppo or sft.
      config: the settings.
      ways_of_talking: titles, in words, that are ways of talking.
      arrays: of `crs_jax.safetensors`.
      together_NN: how many training dialogues name two items.
    """

    model: str
    config: ConfigDict
    ways_of_talking: list[tuple[str, ...]]
    tokenizer: DialogueTokenizer
    catalogue: Catalogue
    arrays: dict[str, np.ndarray]
    together_NN: scipy.sparse.csr_matrix


def read_checked(folder: pathlib.Path) -> Checked:
    """Reads an exported folder; builds no model and writes nothing.

    Raises:
      InputError: a file is missing, damaged, a link out of the folder, or says what `folder.write` never writes.
    """
    model, about = shared_model(folder), read_json(_inside(folder, ABOUT))
    version = check(about.get(KEY), folder / ABOUT)
    if about.keys() != {KEY, "model", "config", "ways_of_talking", "sha256"}:
        raise InputError(f"{folder / ABOUT}: holds {', '.join(about):.200}, which are not the fields that are written")
    _check_sums(folder, about["sha256"])
    config = stored_config(settings_now(about["config"], version), folder / ABOUT)
    phrases = about["ways_of_talking"]
    if not isinstance(phrases, list) or not all(isinstance(words, list) and _texts(words) for words in phrases):
        raise InputError(f"{folder / ABOUT}: ways_of_talking is no list of titles in words")
    tokenizer = DialogueTokenizer.load(folder, WORDS)
    catalogue = read_items(folder / ITEMS)
    if tokenizer.num_items != len(catalogue):
        raise InputError(
            f"{folder / ITEMS}: {len(catalogue)} items, dialogue_tokenizer.json says {tokenizer.num_items}"
        )
    _check_for_transformers(folder, config, tokenizer)
    arrays = _read_rest(folder / REST, config, tokenizer, catalogue, version)
    together_NN = read_counts(folder / REST, arrays, len(catalogue))
    return Checked(model, config, [tuple(words) for words in phrases], tokenizer, catalogue, arrays, together_NN)


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The place of a file in the folder; `InputError` where there is none, or a link that leads out of it.

    A snapshot in the hub's cache is links to files of the same repository there, which are of the folder.
    """
    path, root = folder / name, folder.resolve()
    if not path.is_file():
        raise InputError(f"{folder}: there is no {name}; copy or download the folder whole")
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    if not any(path.resolve().is_relative_to(place) for place in (root, blobs)):
        raise InputError(f"{path}: is a link out of the folder; copy the folder with its files (cp -rL)")
    return path


def _check_sums(folder: pathlib.Path, sums: Any) -> None:
    """The files are those that are written, and as the sums say."""
    encoder = {f"{ENCODER}/{name}" for name in FILES}
    if not isinstance(sums, Mapping) or sums.keys() not in ({*NAMES}, {*NAMES, *encoder}):
        raise InputError(f"{folder / ABOUT}: sha256 does not name the files of an exported folder and no others")
    for name, expected in sums.items():
        path = _inside(folder, name)
        most = {ITEMS: MOST_ITEM_BYTES, SINGLE: sys.maxsize, REST: sys.maxsize}.get(path.name, MOST_JSON)
        if path.stat().st_size > most:
            raise InputError(f"{path}: has more than {most:,} bytes, which no file of this kind has")
        if sha256(path) != expected:
            raise InputError(f"{folder / name}: is not the file that was written; copy or download the folder whole")
    if f"{ENCODER}/{FILES[0]}" not in sums and (folder / ENCODER).exists():
        raise InputError(f"{folder / ENCODER}: {ABOUT} does not name it; copy or download the folder whole")


def read_items(path: pathlib.Path) -> Catalogue:
    """The catalogue; `InputError` names line and field of what is no item."""
    names = {field.name for field in dataclasses.fields(Item)} - {"plot"}
    items = []
    for number, row in numbered_json_lines(path):
        year = row.get("year")
        if row.keys() != names:
            raise InputError(
                f"{path}:{number}: its fields are {', '.join(row):.200}, expected {', '.join(sorted(names))}"
            )
        if not _texts([row["item_id"], row["title"]]) or not row["item_id"]:
            raise InputError(f"{path}:{number}: item_id or title is no text")
        if year is not None and (type(year) is not int or not YEARS[0] <= year <= YEARS[1]):
            raise InputError(f"{path}:{number}: year is {year!r:.80}, expected null or a year")
        for name in ("genres", "people"):
            if not isinstance(row[name], list) or not _texts(row[name]):
                raise InputError(f"{path}:{number}: {name} is no list of texts")
        items.append(Item(**{**row, "genres": tuple(row["genres"]), "people": tuple(row["people"])}))
    if not items:
        raise InputError(f"{path}: holds no item")
    try:
        return Catalogue(tuple(items))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and len(value) <= LONGEST and is_plain(value) for value in values)


def _check_for_transformers(folder: pathlib.Path, config: ConfigDict, tokenizer: DialogueTokenizer) -> None:
    """What transformers reads is what this version writes for such a model."""
    layout, shape = token_layout(tokenizer, config), model_config(config)
    for name, expected in (
        ("config.json", exported_settings(shape, layout, tied=False)),
        ("generation_config.json", generation_settings(tokenizer, config.data.reply_tokens)),
        ("tokenizer_config.json", tokenizer_settings(config.model.positions)),
    ):
        found = read_json(folder / name)
        for field in sorted(found.keys() | expected.keys()):
            if field not in expected or field not in found or not _same(found[field], expected[field]):
                given = f"is {found[field]!r:.80}" if field in found else "is missing"
                rule = f"expected {expected[field]!r:.80}" if field in expected else "which this version does not write"
                raise InputError(f"{folder / name}: {field:.80} {given}, {rule}")
    words, expected = read_json(folder / WORDS), json.loads(completed_words(tokenizer.words()))
    words.get("model", {}).pop("merges"), expected["model"].pop("merges")  # checked; written in one of two ways
    for part, wanted in ((words, expected), (words["model"], expected["model"])):
        for field, value in part.items():
            same = _same(value, wanted[field]) if field in wanted else not value  # of another version of the library
            if field != "model" and not same:
                raise InputError(f"{folder / WORDS}: {field:.80} is not what this version writes")
    refuse_other(folder / SINGLE, read_shapes(folder / SINGLE), exported_shapes(shape, layout))
    read_arrays(folder / SINGLE)


def _same(found: Any, expected: Any) -> bool:
    """Whether two values are the same JSON, where 1, 1.0 and true are three."""
    return json.dumps(plain(found), sort_keys=True) == json.dumps(plain(expected), sort_keys=True)


def _read_rest(
    path: pathlib.Path, config: ConfigDict, tokenizer: DialogueTokenizer, catalogue: Catalogue, version: int
) -> dict[str, np.ndarray]:
    """The arrays that transformers has no place for."""
    found = {path_now(name, version): each for name, each in read_shapes(path).items()}
    N = len(catalogue)
    _, content = found.get("evidence/content", ("", ()))
    _, frozen = found.get("frozen/items/content", ("", ()))
    if len(content) != 2 or content[0] != N or content[1] < 1:
        raise InputError(f"{path}: evidence/content is {content}, expected {N} rows")
    if frozen[:1] != (padded(N, 128 * config.mesh.tensor),):
        raise InputError(
            f"{path}: frozen/items/content is {frozen}, which {N} items and --config.mesh.tensor do not give"
        )
    shapes = policy_shapes(config, token_layout(tokenizer, config), content[1], Attributes.of(catalogue))
    shapes["policy"] = {name: tree for name, tree in shapes["policy"].items() if name not in SHARED}
    expected: dict[str, Shape] = dict(flat(shapes))
    expected |= {"evidence/content": content, "evidence/probe": content[1:], "evidence/count": (N,)}
    refuse_other(path, {name: each for name, each in found.items() if name not in SPARSE}, expected)
    data, indices, indptr = (found.get(name, ("", ())) for name in SPARSE)
    wholes = indices[0] == indptr[0] and indices[0] in ("I32", "I64")
    if data[0] != "F32" or not wholes or len(data[1]) != 1 or data[1] != indices[1] or indptr[1] != (N + 1,):
        raise InputError(
            f"{path}: {', '.join(SPARSE)} are {data}, {indices} and {indptr}: no sparse matrix of {N} rows"
        )
    return {path_now(name, version): array for name, array in read_arrays(path).items()}


def read_counts(path: pathlib.Path, arrays: Mapping[str, np.ndarray], N: int) -> scipy.sparse.csr_matrix:
    """Which items are named together; `InputError` for what scipy would read beyond the arrays, or is no count."""
    data, indices, indptr = (arrays[name] for name in SPARSE)
    if indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise InputError(f"{path}: evidence/together/indptr does not rise from 0 to {len(data)}")
    if len(indices) and (indices.min() < 0 or indices.max() >= N):
        raise InputError(f"{path}: evidence/together/indices leaves 0 to {N - 1}")
    for name, counts in (("count", arrays["evidence/count"]), ("together/data", data)):
        if len(counts) and (counts.min() < 0 or counts.max() > MOST_COUNT):
            raise InputError(f"{path}: evidence/{name} holds a number that is no count of dialogues")
    return scipy.sparse.csr_matrix((data, indices, indptr), shape=(N, N))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, by their path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found
