"""What every stage works on: the corpus in tokens, the catalogue's frozen vectors, and where models come from."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.data.corpus import Corpus
from crs_jax.data.dialogue import RECOMMENDER
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.features.attributes import Attributes
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.models import hf
from crs_jax.models.decisions import BaseRates, base_rates
from crs_jax.models.decoder import DECODERS, DecoderConfig
from crs_jax.models.items import Frozen, centred
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.models.query import KINDS

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Task:
    """Inputs of all stages.

    Attributes:
      config: the whole config.
      workdir: where the run writes.
      mesh: devices.
      corpus: dialogues and catalogue.
      tokenizer: words, controls and items.
      encoded: by split, dialogue, turn: token ids.
      content_NE: frozen description embeddings, `[N, E]` unit rows.
      attributes: genres and years of the items.
      cooccurrence: what is named together in training dialogues.
      people: who is in which item.
      embed: texts to unit embeddings `[n, E]`, cached on disk.
      embed_on_host: the same without the device, for host functions of compiled programs; None: `embed` uses none.
      cache: folder of prepared data.
      computed: by split, the features of its contexts (`inputs/features.py`), once they were needed.
      made_from: name to fingerprint of what all models rest on: catalogue, vocabulary, encoder, dialogues.
    """

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    corpus: Corpus
    tokenizer: DialogueTokenizer
    encoded: dict[str, list[list[list[int]]]]
    content_NE: np.ndarray
    attributes: Attributes
    cooccurrence: CoOccurrence
    people: People
    embed: Callable[[Sequence[str]], np.ndarray]
    cache: pathlib.Path
    made_from: dict[str, str]
    embed_on_host: Callable[[Sequence[str]], np.ndarray] | None = None
    computed: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def contrast_NE(self) -> np.ndarray:
        """Unit embeddings less their mean, for relevance: what all descriptions share would make a few of them fit
        everything said (hubs).
        """
        return centred(self.content_NE)

    @property
    def fingerprint(self) -> str:
        """Of all of `made_from`; part of the name of whatever is cached."""
        return "-".join(self.made_from.values())

    def dialogues(self, split: str):
        """Dialogues of a split."""
        return getattr(self.corpus, split)

    def replies(self, split: str) -> list[tuple[int, int]]:
        """(dialogue, turn) of each recommender message that has a context."""
        return [
            (d, t)
            for d, dialogue in enumerate(self.dialogues(split))
            for t, turn in enumerate(dialogue.turns)
            if t > 0 and turn.role == RECOMMENDER
        ]

    @property
    def layout(self) -> Layout:
        """Token ids of the model."""
        return token_layout(self.tokenizer, self.config)


def token_layout(t: DialogueTokenizer, config: ConfigDict) -> Layout:
    """Token ids of a model with that tokenizer."""
    return Layout(
        num_words=t.num_words,
        item_offset=t.item_offset,
        num_items=t.num_items,
        act_items=config.data.act_items,
        pad=t.pad,
        seeker=t.seeker,
        recommender=t.recommender,
        rec=t.rec,
        say=t.say,
        end=t.end,
        unused=tuple(t.unused),
    )


def model_config(config: ConfigDict) -> DecoderConfig:
    """The decoder."""
    return DECODERS[config.model.decoder].config.from_settings(config.model)


def log_popularity(task: Task) -> np.ndarray:
    """log(1/2 + number of the recommenders' training messages that name the item), `[N]`."""
    count_N = np.zeros(len(task.corpus.catalogue))
    for dialogue in task.corpus.train:
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER:
                count_N[task.corpus.catalogue.rows(turn.distinct_items)] += 1
    return np.log(count_N + 0.5)


def corpus_rates(task: Task) -> BaseRates:
    """How often recommenders of the training dialogues propose, name what they propose, and end."""
    t = task.tokenizer
    replies = (task.encoded["train"][d][turn][2:] for d, turn in task.replies("train"))
    return base_rates(replies, t.item_offset, t.say, t.end, task.config.data.act_items)


def new_policy(task: Task, rates: BaseRates | None = None) -> Policy:
    """A policy at its initial values (a Hugging Face checkpoint where `config.model.init` names one).

    `rates` are where its decisions start, `corpus_rates` for one that is trained or measured; None where only its
    shapes are wanted.
    """
    config, given = task.config, None
    if config.model.init != "scratch":
        given = hf.load(config.model.init, config.model.decoder)
    policy = Policy(
        model_config(config),
        task.layout,
        task.content_NE,
        log_popularity(task),
        task.attributes.item_NF,
        len(task.attributes.genres),
        task.attributes.asked_size,
        rates,
        rngs=nnx.Rngs(params=jax.random.key(config.seed)),
        pad_to=128 * config.mesh.tensor,
        leave_out=tuple(kind for kind in KINDS if kind in config.model.leave_out),
        scale=0.02 if given is None else given.spread,
    )
    if given is not None:
        hf.fill(policy, given)
    return policy


def policy_shapes(
    config: ConfigDict, layout: Layout, embedding: int, attributes: Attributes
) -> dict[str, dict[str, Any]]:
    """`params` and `frozen` of `new_policy` as nested dicts of shapes, without its arrays.

    Args:
      config: the whole config.
      layout: token ids.
      embedding: E.
      attributes: of the items.
    """
    G, F = len(attributes.genres), attributes.item_NF.shape[1]
    leave_out = tuple(kind for kind in KINDS if kind in config.model.leave_out)
    sizes = (embedding, F, G, attributes.asked_size, 128 * config.mesh.tensor)
    return _policy_shapes(model_config(config), layout, sizes, leave_out)


@functools.lru_cache(maxsize=8)
def _policy_shapes(
    model: DecoderConfig, layout: Layout, sizes: tuple[int, ...], leave_out: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    E, F, G, Z, pad_to = sizes
    blank = np.zeros((layout.num_items, E), np.float32), None, np.zeros((layout.num_items, F), np.float32)
    settings: dict[str, Any] = {"pad_to": pad_to, "leave_out": leave_out}
    policy = nnx.eval_shape(lambda: Policy(model, layout, *blank, G, Z, rngs=nnx.Rngs(0), **settings))
    _, params, frozen = split_model(policy)
    return {"policy": jax.tree.map(lambda a: a.shape, params), "frozen": jax.tree.map(lambda a: a.shape, frozen)}


def split_model(model: nnx.Module) -> tuple[Any, Any, Any]:
    """(graphdef, trained arrays, frozen arrays) as nested dicts; `nnx.merge` takes them back."""
    graphdef, *states = nnx.split(model, nnx.Param, Frozen)
    params, frozen = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def copy_tree(tree: Any) -> Any:
    """New buffers: what a donated argument must not share."""
    return jax.tree.map(jnp.copy, tree)


def count(params: Any) -> int:
    """Number of scalars."""
    return int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)))
