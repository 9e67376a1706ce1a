"""Policies of a finished run on another corpus, whose items they have never seen: nothing is trained.

Words, trunk and what the query has learnt of evidence come along, by the source's tokenizer. An item's vector is then
what its frozen contents (description, genres, year, popularity) make of it: residuals and biases that were learnt of
the source's single items stay behind, and genres are matched by name. What the source has not seen (a genre that its
catalogue lacks) says nothing. Popularity and what is named together are counted in the new corpus' training dialogues:
the new corpus' evidence, not what the policies learnt.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from crs_jax.data.corpus import load
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.features.attributes import ERAS, YEARS, Attributes
from crs_jax.inputs.task import Task, new_policy, split_model
from crs_jax.models.query import PLACE
from crs_jax.rl.frozen_models import Model
from crs_jax.runtime.checkpoint import load_result
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.progress import say
from crs_jax.runtime.sharding import path_name, place
from crs_jax.stored_config import read_config

SAME = (
    "data.act_items",
    "model.decoder",
    "model.layers",
    "model.width",
    "model.heads",
    "model.positions",
    "model.leave_out",
    "encoder.path",
)


def source_of(config: ConfigDict) -> tuple[pathlib.Path, ConfigDict]:
    """The folder that `config.model.transfer` names, and its config.

    Raises:
      InputError: the folder is no finished run, or its model has other sizes than this config's; names the setting.
    """
    folder, flag = pathlib.Path(config.model.transfer).expanduser(), f"--config.model.transfer={config.model.transfer}"
    for name in ("config.json", "tokenizer/dialogue_tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{flag}: there is no {name}; give the workdir of a run that has finished")
    source = read_config(folder)
    for name in SAME:
        section, field = name.split(".")
        there, here = (
            list(v) if isinstance(v, (list, tuple)) else v for v in (source[section][field], config[section][field])
        )
        if there != here:
            raise InputError(
                f"{flag}: that run has {name}={there!r}, this one {here!r}; give --config.{name}={there!r}"
            )
    return folder, source


def source_tokenizer(config: ConfigDict, num_items: int) -> DialogueTokenizer:
    """The source's words, before this catalogue's items."""
    return DialogueTokenizer.load(source_of(config)[0] / "tokenizer").for_items(num_items)


def transferred(task: Task) -> dict[str, Model]:
    """`sft` and, where the source has it, `ppo`; `InputError` where it has no finished stage sft."""
    folder, source = source_of(task.config)
    flag = f"--config.model.transfer={task.config.model.transfer}"
    sft, ppo = (load_result(folder, stage) for stage in ("sft", "ppo"))
    if sft is None:
        raise InputError(f"{flag}: {folder / 'checkpoints'} holds no finished stage sft")
    try:
        genres = Attributes.of(load(source, folder, stored=True).catalogue).genres
    except InputError as error:
        raise InputError(f"{flag}: that run's corpus, which names its genres, cannot be read: {error}") from None
    models = {"sft": moved(task, sft, genres)}
    if ppo is not None:
        models["ppo"] = moved(task, ppo["policy"], genres, opened=source.ppo.get("evidence", "same") == "all")
    shared = len(set(genres) & set(task.attributes.genres))
    say(
        f"transfer: {', '.join(models)} of {folder}, without what was learnt of its single items; {shared} of "
        f"{len(task.attributes.genres)} genres are known there; popularity and what is named together are counted in "
        f"{task.corpus.name}'s training dialogues"
    )
    return models


def moved(task: Task, params: Any, genres: Sequence[str], opened: bool = False) -> Model:
    """A policy of a catalogue with those genres, for the task's catalogue, laid over the mesh.

    Args:
      task: the new corpus.
      params: of the policy, host arrays.
      genres: in the order of the source's attributes.
      opened: the policy reads all kinds of evidence, whatever `config.model.leave_out` says (`ppo.evidence`).

    Raises:
      InputError: an array has another size than this config's models; names it.
    """
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.init = "scratch"
        if opened:
            config.model.leave_out = ()
    graphdef, blank, frozen = split_model(new_policy(dataclasses.replace(task, config=config)))
    params = carried(params, blank, genres, task.attributes.genres)

    def check(path: Any, found: np.ndarray, wanted: Any) -> np.ndarray:
        if found.shape != wanted.shape:
            raise InputError(
                f"--config.model.transfer={task.config.model.transfer}: that run's {path_name(path)} is of size "
                f"{found.shape}, this config's {wanted.shape}"
            )
        return found

    params = jax.tree_util.tree_map_with_path(check, params, blank)
    return graphdef, place(params, task.mesh), place(frozen, task.mesh)


def carried(params: Any, blank: Any, known: Sequence[str], genres: Sequence[str]) -> Any:
    """Parameters for another catalogue.

    Args:
      params: of the policy.
      blank: of a policy for the new catalogue: its sizes.
      known: genres of the source catalogue; genres: of the new one.
    """
    items, query = dict(params["items"]), dict(params["query"])
    embedding = query["text_kernel"].shape[0]
    place_of = {genre: n for n, genre in enumerate(known)}
    genre_G = [place_of.get(genre, -1) for genre in genres]
    years = [len(known) + n for n in range(len(YEARS) + 1)]
    facet_F = np.array([*genre_G, *years])
    attributes_W = np.where(facet_F < 0, -1, embedding + facet_F)
    content_W = np.r_[:embedding, attributes_W, embedding + len(known) + len(years)]
    last_G = [n if n < 0 else len(known) + n for n in genre_G]
    asked_Z = np.array([*genre_G, *last_G, *(2 * len(known) + n for n in range(len(ERAS) + PLACE))])
    items["projection"] = rows(items["projection"], content_W)
    items["residual"] = np.zeros(blank["items"]["residual"].shape, np.float32)
    items["bias"] = np.zeros(blank["items"]["bias"].shape, np.float32)
    for name in ("match_kernel", "hidden_kernel"):
        query[name] = rows(query[name], content_W, axis=1)
    query["asked_kernel"] = rows(query["asked_kernel"], asked_Z)
    query["asked_match"] = rows(rows(query["asked_match"], asked_Z), facet_F, axis=1)
    query["named_match"] = rows(rows(query["named_match"], facet_F), facet_F, axis=1)
    return {**params, "items": items, "query": query}


def rows(array: Any, where: np.ndarray, axis: int = 0) -> np.ndarray:
    """The slices of an axis in that order, zeros for -1."""
    taken = np.take(np.asarray(array), np.maximum(where, 0), axis)
    there = np.expand_dims(where >= 0, [a for a in range(taken.ndim) if a != axis])
    return np.where(there, taken, np.float32(0))
