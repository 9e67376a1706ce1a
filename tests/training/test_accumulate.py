"""k micro-batches make the step that one batch makes, though their rows hold different numbers of tokens."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_task import change, fresh_models

from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.features import of_split
from crs_jax.inputs.labels import label
from crs_jax.inputs.task import copy_tree
from crs_jax.rl.contexts import take
from crs_jax.rl.reward import Normaliser
from crs_jax.runtime.sharding import place, shard_batch
from crs_jax.training import reward, sft
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.ppo_stage import build
from crs_jax.training.state import TrainState

RATE = 1.0


def start(params, optimizer) -> TrainState:
    extra = first_extra(0.1, 0.1, 0.2)
    return TrainState(jnp.int32(0), copy_tree(params), optimizer.init(params), jnp.asarray(False), extra)


def lively(params):
    """Away from symmetry, so that no gradient is idle."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.05, a.shape), a.dtype), params)


def sft_step(world, config):
    task = dataclasses.replace(world.task, config=config)
    graph, params, frozen = world.sft
    optimizer = optax.sgd(RATE)
    rows = sft.make_packer(task, "train").epoch(rows=8, crop=0.0, rng=np.random.default_rng(0))[0]
    counts = rows["word_mask_RW"].reshape(4, -1).sum(1)
    assert len(set(counts.tolist())) > 1  # a mean of means would be another number
    batch = shard_batch(sft.with_features(rows, of_split(task, "train")), task.mesh)
    params = lively(params)
    state, metrics = sft.make_step(graph, optimizer, task)(start(params, optimizer), frozen, batch, jax.random.key(0))
    return params, state.params, metrics


def reward_step(world, config):
    task = dataclasses.replace(world.task, config=config)
    graph, params, frozen = world.reward
    optimizer = optax.sgd(RATE)
    rows = sft.make_packer(task, "train").epoch(rows=8, crop=0.0, rng=np.random.default_rng(0))[0]
    numbers = np.arange(len(task.corpus.train))
    signals_DTS = label(task, "train").signal_DTS
    split_features = of_split(task, "train")
    rows = reward.slot_labels(task, rows, numbers, signals_DTS, split_features)
    rows |= Counterfactuals(task, numbers, signals_DTS, split_features).draw(8, 1)
    batch = shard_batch(rows, task.mesh)
    params = lively(params)
    step = reward.make_step(graph, optimizer, task)
    state, metrics = step(start(params, optimizer), frozen, batch, jax.random.key(0))
    return params, state.params, metrics


def ppo_step(world, config):
    task = dataclasses.replace(world.task, config=config)
    graphs, params, frozen_models = build(task, world.sft, world.reward)
    params = place(lively(params), task.mesh)
    optimizer = optax.sgd(RATE)
    contexts = take(contexts_at(task, "train", task.replies("train")), np.arange(8))
    normaliser = Normaliser(jnp.zeros(3), jnp.array([0.5, 0.2, 0.5]), jnp.float32(1.5))
    iteration = make_iteration(graphs, optimizer, config, task.mesh)
    batch = shard_batch(contexts, task.mesh)
    state, metrics = iteration(start(params, optimizer), frozen_models, normaliser, batch, jax.random.key(0))
    return params, state.params, metrics


@pytest.mark.parametrize(
    ("stage", "make"),
    [("sft", sft_step), ("reward", reward_step), pytest.param("ppo", ppo_step, marks=pytest.mark.slow)],
)
def test_micro_batches_make_the_same_step(world, tmp_path, stage, make):
    config = change(
        world.task.config, model__dropout=0.0, sft__rows=8, ppo__minibatches=1, ppo__epochs=1, ppo__act_entropy=0.1,
        ppo__word_entropy=0.1,
    )  # fmt: skip
    task = dataclasses.replace(world.task, config=config)
    policy, model = fresh_models(task)  # without dropout, whose draws are a micro-batch's own
    world = dataclasses.replace(world, task=task, sft=policy, reward=model)
    first, whole, metrics = make(world, config)
    _, parts, parts_metrics = make(world, change(config, **{f"{stage}__accumulate": 4}))
    moved = {}
    for (path, a), b, before in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), jax.tree.leaves(first), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        largest = np.abs(a - before).max()
        if stage != "reward" or not re.search("query|decisions", name):  # its loss has no use for these
            moved[name] = largest > 1e-5
        np.testing.assert_allclose(a, b, atol=2e-5 * largest + 2e-7, rtol=0, err_msg=name)
    assert sum(moved.values()) > 0.8 * len(moved)
    assert metrics.keys() == parts_metrics.keys()
    for name, value in metrics.items():
        if name == "ratio_error":  # rounding; the largest, not a sum
            assert parts_metrics[name] < 1e-4
        else:
            np.testing.assert_allclose(value, parts_metrics[name], rtol=2e-5, atol=2e-6, err_msg=name)
