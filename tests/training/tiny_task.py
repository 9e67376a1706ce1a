"""A small task from the simulated corpus, ready in a second: random unit vectors stand in for the sentence encoder."""

import hashlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from configs.common import get_config
from crs_jax.data.corpus import load
from crs_jax.features.attributes import Attributes
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.inputs.task import SPLITS, Task, copy_tree, corpus_rates, new_policy, split_model
from crs_jax.prepare import make_tokenizer
from crs_jax.rl.reward import RewardModel
from crs_jax.runtime.sharding import AXES, place

EMBEDDING = 16


def embed(texts: Sequence[str]) -> np.ndarray:
    """A unit vector for each text, drawn from a seed that is the text's hash."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    vectors = np.array([np.random.default_rng(seed).normal(size=EMBEDDING) for seed in seeds]).reshape(-1, EMBEDDING)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def tiny_config(cache: pathlib.Path, **changes: float | str) -> ConfigDict:
    """Two layers of 32, 30 dialogues; `changes` by dotted name with `__` for the dot: `ppo__clip=0.1`."""
    c = get_config()
    c.log_every = 1
    c.data.update({
        "window": 4, "context_tokens": 48, "reply_tokens": 12, "act_items": 2, "validation_dialogues": 6,
        "cache_dir": str(cache), "dir": str(cache / "raw"),
    })  # fmt: skip
    c.simulator.update({"catalogue_size": 40, "train_dialogues": 30, "test_dialogues": 6})
    c.tokenizer.vocab_size = 300
    c.model.update({"layers": 2, "width": 32, "heads": 4, "positions": 128})
    c.sft.update({"rows": 4, "row_tokens": 96, "epochs": 2.0})
    c.reward.update({"epochs": 1.0, "holdout": 0.1})
    c.ppo.update({"contexts": 8, "group": 2, "epochs": 2, "minibatches": 2, "iterations": 4, "decode_block": 4})
    c.ppo.update({"group_baseline": False, "slate_batches": 2, "all_acts": 16})
    c.ppo.update({"act_kl_target": 0.5, "word_kl_target": 0.5, "kl_horizon": 100})
    c.evaluation.update({"batch": 8, "bootstrap": 50})
    return change(c, **changes)


def change(config: ConfigDict, **changes: float | str) -> ConfigDict:
    """A copy with other values."""
    c = config.copy_and_resolve_references()
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            c[section][field] = value
        else:
            c[section] = value
    return c


def one_device() -> Mesh:
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)


def make_task(workdir: pathlib.Path, config: ConfigDict, mesh: Mesh | None = None) -> Task:
    corpus = load(config, workdir)
    tokenizer = make_tokenizer(config, corpus, workdir)
    encoded = {
        split: tokenizer.encode_dialogues(getattr(corpus, split), corpus.catalogue, config.data.act_items)
        for split in SPLITS
    }
    return Task(
        config=config, workdir=workdir, mesh=mesh or one_device(), corpus=corpus, tokenizer=tokenizer, encoded=encoded,
        content_NE=embed([item.describe() for item in corpus.catalogue.items]),
        attributes=Attributes.of(corpus.catalogue),
        cooccurrence=CoOccurrence(corpus.train, corpus.catalogue), people=People(corpus.catalogue), embed=embed,
        cache=workdir / "cache", made_from={"set of dialogues": "tiny"},
    )  # fmt: skip


def fresh_models(task: Task):
    """(SFT policy, reward model) at their first values, placed on the mesh, each as graphdef, params, frozen.

    The reward model's heads are random: at zero it would not tell replies apart.
    """
    graph, params, frozen = split_model(new_policy(task, corpus_rates(task)))
    frozen = place(frozen, task.mesh)
    policy = nnx.merge(graph, copy_tree(params), frozen)
    reward_graph, reward, reward_frozen = split_model(RewardModel(policy))
    rng = np.random.default_rng(9)
    reward["heads"] = {
        name: jnp.asarray(rng.normal(size=a.shape) / np.sqrt(len(a) + 1), jnp.float32) if a.ndim == 2 else a
        for name, a in reward["heads"].items()
    }
    reward, reward_frozen = place(copy_tree(reward), task.mesh), place(reward_frozen, task.mesh)
    return (graph, place(params, task.mesh), frozen), (reward_graph, reward, reward_frozen)
