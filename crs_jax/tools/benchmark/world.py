"""Models, contexts, replies and packed rows of random numbers, in the shapes of a run."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from ml_collections import ConfigDict

from crs_jax.config import slate_contexts
from crs_jax.data.byte_bpe import GPT2_WORDS
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.corpus import Corpus
from crs_jax.data.packing import slots_of
from crs_jax.data.tokenizer import CONTROLS
from crs_jax.features.attributes import Attributes
from crs_jax.features.context import ContextFeatures
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.inputs.task import Task, copy_tree, new_policy, split_model
from crs_jax.models.attention import refuse_where_missing
from crs_jax.models.decisions import BaseRates
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import FrozenModels, Graphs
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.runtime.sharding import AXES, place
from crs_jax.tools.benchmark.counts import Batch, Model
from crs_jax.training.advantages import Experience, FirstItems
from crs_jax.training.ppo_stage import build

EMBEDDING, GENRES = 384, 27
NAMED, NEAR, STARRING = 32, 512, 48  # most rows of a context's features, as the signals give them


class Numbering:
    """The ids of a `DialogueTokenizer` without its words."""

    def __init__(self, words: int, items: int) -> None:
        self.num_words, self.num_items = words, items
        self.pad, self.seeker, self.recommender, self.rec, self.say, self.end = range(words, words + len(CONTROLS))
        self.item_offset = words + len(CONTROLS)
        self.unused = ()


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random unit vectors along the last axis, float32."""
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_task(config: ConfigDict) -> Task:
    """A task without dialogues, on the first device, whose items have random contents."""
    refuse_where_missing(config.model.attention)
    rng = np.random.default_rng(config.seed)
    N = config.simulator.catalogue_size
    words = GPT2_WORDS if config.tokenizer.kind == "gpt2" else config.tokenizer.vocab_size
    kinds = tuple(f"kind {g}" for g in range(GENRES))
    items = [Item(str(n), f"Item {n}", int(rng.integers(1960, 2019)), (str(rng.choice(kinds)),)) for n in range(N)]
    catalogue = Catalogue(tuple(items))
    tokenizer: Any = Numbering(words, N)
    mesh = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)
    nowhere = pathlib.Path()
    return Task(
        config=config, workdir=nowhere, mesh=mesh, corpus=Corpus("random", catalogue, (), (), ()), tokenizer=tokenizer,
        encoded={}, content_NE=unit_rows(rng, N, EMBEDDING), attributes=Attributes.of(catalogue),
        cooccurrence=CoOccurrence((), catalogue), people=People(catalogue),
        embed=lambda texts: unit_rows(rng, len(texts), 1), cache=nowhere, made_from={"set of dialogues": "random"},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    """What the cells of one model work with.

    Attributes:
      task: config, device and ids.
      sft: graphdef, parameters and frozen arrays of the policy.
      graphs, frozen_models, normaliser: as the PPO stage makes them.
      actor: parameters of the actor-critic.
    """

    task: Task
    sft: tuple[Any, Any, Any]
    graphs: Graphs
    actor: Any
    frozen_models: FrozenModels
    normaliser: Normaliser

    @classmethod
    def of(cls, config: ConfigDict) -> World:
        """Random weights; the reward model's heads too, since at zero they would not tell replies apart."""
        task = make_task(config)
        one = -np.log(task.layout.num_words)  # an end as likely as one word, so that replies have their full length
        rates = BaseRates(np.full(config.data.act_items, -np.log(task.layout.num_items)), np.full(2, one), one)
        graph, params, frozen = split_model(new_policy(task, rates))
        params, frozen = place(params, task.mesh), place(frozen, task.mesh)
        reward_graph, reward, reward_frozen = split_model(RewardModel(nnx.merge(graph, params, frozen)))
        rng = np.random.default_rng(config.seed + 1)
        reward["heads"] = {
            name: jnp.asarray(rng.normal(size=a.shape), jnp.float32) for name, a in reward["heads"].items()
        }
        sft = graph, params, frozen
        graphs, actor, frozen_models = build(
            task, sft, (reward_graph, place(copy_tree(reward), task.mesh), reward_frozen)
        )
        blank = Normaliser(jnp.zeros(3), jnp.ones(3), jnp.float32(1))
        return cls(task, sft, graphs, actor, frozen_models, blank)

    @property
    def model(self) -> Model:
        """Sizes, for counting."""
        config, layout = self.task.config, self.task.layout
        return Model(
            layers=config.model.layers,
            width=config.model.width,
            words=layout.num_words,
            items=layout.num_items,
            content=self.sft[2]["items"]["content"].shape[1],
            act_slots=layout.act_items + 1,
            bytes_each=jnp.dtype(config.model.dtype).itemsize,
        )


def batch_of(config: ConfigDict, part: str) -> Batch:
    """Contexts and replies of a part; an update sees one minibatch."""
    c, d = config.ppo, config.data
    contexts = c.contexts // c.minibatches if part == "update" else c.contexts
    return Batch(contexts, c.group, d.context_tokens, d.reply_tokens)


def random_features(task: Task, rng: np.random.Generator, *lead: int) -> ContextFeatures:
    """With leading axes `lead`, everything known."""
    N = task.layout.num_items
    near, starring = min(NEAR, N), min(STARRING, N)
    arrays: Any = (
        unit_rows(rng, *lead, EMBEDDING),
        rng.random((*lead, task.attributes.asked_size), np.float32),
        rng.integers(0, N, (*lead, NAMED), np.int32),
        rng.integers(0, 2, (*lead, NAMED), np.int32),
        rng.permuted(np.broadcast_to(np.arange(N, dtype=np.int32), (*lead, N)), axis=-1)[..., :near],
        rng.random((*lead, near), np.float32),
        rng.permuted(np.broadcast_to(np.arange(N, dtype=np.int32), (*lead, N)), axis=-1)[..., :starring],
        rng.random((*lead, starring), np.float32),
        unit_rows(rng, *lead, EMBEDDING),
    )
    return ContextFeatures(*arrays)


def random_contexts(task: Task, batch: Batch, count: int = 0) -> Contexts:
    """Full prompts of random words, ending in `<|recommender|> <|rec|>`, with features; host arrays.

    `count` of them, or as many as the batch has.
    """
    rng, layout = np.random.default_rng(task.config.seed + 2), task.layout
    count = count or batch.contexts
    prompt_CP = rng.integers(0, layout.num_words, (count, batch.context_tokens), np.int32)
    prompt_CP[:, -2:] = layout.recommender, layout.rec
    fields: Any = prompt_CP, np.ones(prompt_CP.shape, bool), random_features(task, rng, count)
    return Contexts(*fields)


def random_replies(task: Task, batch: Batch) -> np.ndarray:
    """`[C, G, R]`: two items, `<|say|>`, words and `<|end|>`, of full length."""
    rng, layout = np.random.default_rng(task.config.seed + 3), task.layout
    shape = (batch.contexts, batch.group, batch.reply_tokens)
    tokens_CGR = rng.integers(0, layout.num_words, shape, np.int32)
    first = rng.integers(0, layout.num_items // 2, shape[:2])
    tokens_CGR[..., 0] = layout.item_offset + first
    tokens_CGR[..., 1] = layout.item_offset + first + layout.num_items // 2
    tokens_CGR[..., 2], tokens_CGR[..., -1] = layout.say, layout.end
    return tokens_CGR


def random_experience(task: Task, batch: Batch) -> Experience:
    """What one update trains on; old log-probabilities are near those of an untrained policy."""
    rng, layout = np.random.default_rng(task.config.seed + 4), task.layout
    contexts, tokens_CGR = random_contexts(task, batch), random_replies(task, batch)
    say_CGR = np.cumsum(tokens_CGR == layout.say, -1) - (tokens_CGR == layout.say)

    def noise(mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
        return rng.normal(mean, scale, tokens_CGR.shape).astype(np.float32)

    act_CGR = say_CGR == 0
    old = np.where(act_CGR, -np.log(layout.num_items), -np.log(layout.num_words)).astype(np.float32)
    fields: Any = (
        contexts, tokens_CGR, np.ones(tokens_CGR.shape, bool), act_CGR, old + noise(scale=0.1), old + noise(scale=0.1),
        noise(), noise(), noise(),
    )  # fmt: skip
    return Experience(*fields)


def random_first_items(task: Task) -> FirstItems | None:
    """Those of one update, where first tokens are summed over."""
    config, layout, rng = task.config, task.layout, np.random.default_rng(task.config.seed + 6)
    if not config.ppo.all_acts:
        return None
    count = slate_contexts(config) // config.ppo.minibatches
    features = random_features(task, rng, count)
    A = min(config.ppo.all_acts, layout.num_items)

    def noise(*axes: int) -> np.ndarray:
        return rng.normal(size=(count, *axes)).astype(np.float32)

    flat_CA, even_C2 = np.full((count, A), -np.log(layout.num_items), np.float32), np.full((count, 2), np.log(0.5))
    row_CA: Any = np.tile(np.arange(A, dtype=np.int32), (count, 1))
    acts: Any = row_CA, np.exp(flat_CA), flat_CA, even_C2.astype(np.float32), noise(A), noise(2)
    hidden: Any = noise(config.model.width).astype(config.model.dtype)
    return FirstItems(features, hidden, Acts(*acts), None)


def random_rows(task: Task) -> dict[str, Any]:
    """Packed rows `[R, T]`, each one dialogue within the window, every place of loss used."""
    rng, layout, config = np.random.default_rng(task.config.seed + 5), task.layout, task.config
    R, T, M = config.sft.rows, config.sft.row_tokens, layout.act_items
    A, W = slots_of(T, config.data.act_items)
    order_T = np.broadcast_to(np.arange(T, dtype=np.int32), (R, T))
    features = random_features(task, rng, R, A)._replace(named_mean=None)

    def slots(count: int) -> np.ndarray:
        return np.sort(rng.permuted(order_T, axis=1)[:, :count], axis=1)

    return {
        "tokens_RT": rng.integers(0, layout.num_words, (R, T), np.int32),
        "segment_RT": np.ones((R, T), np.int32),
        "position_RT": np.ascontiguousarray(order_T),
        "utterance_RT": order_T * config.data.window // T,
        "act_at_RA": slots(A),
        "act_used_RAM": np.full((R, A, M), -1, np.int32),
        "act_target_RA": rng.integers(0, layout.num_items + 1, (R, A), np.int32),
        "act_mask_RA": np.ones((R, A), bool),
        "word_at_RW": slots(W),
        "word_items_RWM": rng.integers(0, layout.num_items, (R, W, M), np.int32),
        "word_target_RW": rng.integers(0, layout.num_words, (R, W), np.int32),
        "word_mask_RW": np.ones((R, W), bool),
        "features": features,
    }
