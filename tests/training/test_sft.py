"""The supervised loss is the likelihood of replies given their windows, and it can be driven to zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crs_jax.data.windows import context_windows
from crs_jax.inputs.features import of_split
from crs_jax.inputs.replies import reply_arrays, reply_nll
from crs_jax.inputs.task import copy_tree
from crs_jax.runtime.sharding import shard_batch
from crs_jax.training.optimizer import Rates, make_optimizer
from crs_jax.training.sft import Validation, banded_mask, make_packer, make_step, sft_loss, with_features
from crs_jax.training.state import fresh_state


def test_banded_mask_equals_a_loop():
    rng = np.random.default_rng(0)
    R, T, window = 3, 40, 2
    segment_RT, utterance_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
    for r in range(R):
        at, segment = 0, 0
        while at < T - 6:
            segment += 1
            first = int(rng.integers(0, 3))
            for turn in range(first, first + int(rng.integers(1, 6))):
                for _ in range(int(rng.integers(1, 5))):
                    if at < T - 4:
                        segment_RT[r, at], utterance_RT[r, at] = segment, turn
                        at += 1
    found = np.asarray(banded_mask(jnp.asarray(segment_RT), jnp.asarray(utterance_RT), window))
    for r in range(R):
        for t in range(T):
            for s in range(T):
                sees = (
                    s <= t
                    and segment_RT[r, t] > 0
                    and segment_RT[r, s] == segment_RT[r, t]
                    and utterance_RT[r, t] - utterance_RT[r, s] <= window
                )
                assert found[r, t, s] == sees, (r, t, s)
    assert found.any()
    assert not found.all(2).any()


def lively(params, seed: int = 0, scale: float = 0.1):
    """Parameters far from zero, so that no path through the model is idle."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, scale, a.shape), a.dtype), params)


def test_loss_equals_that_of_each_reply_given_its_window(world, tmp_path):
    """Where a window holds the whole dialogue before a reply, packed rows and separate prompts are the same numbers."""
    task = world.at(tmp_path, data__window=30, data__context_tokens=400, data__reply_tokens=100, sft__row_tokens=512)
    graph, params, frozen = world.sft
    params = lively(
        {**params, "trunk": {**params["trunk"], "positions": jnp.tile(params["trunk"]["positions"], (5, 1))}}
    )
    numbers = [d for d, dialogue in enumerate(task.encoded["train"]) if sum(map(len, dialogue)) <= 400][:6]
    assert len(numbers) == 6
    corpus = dataclasses.replace(task.corpus, train=tuple(task.corpus.train[d] for d in numbers))
    encoded = {**task.encoded, "train": [task.encoded["train"][d] for d in numbers]}
    task = dataclasses.replace(task, corpus=corpus, encoded=encoded)
    rows = make_packer(task, "train").pack()
    assert rows["segment_RT"].max() > 1  # several dialogues share a row

    where = [(d, t) for d, dialogue in enumerate(corpus.train) for t, turn in enumerate(dialogue.turns)
             if turn.role == "recommender"]  # fmt: skip
    longest = max(len(encoded["train"][d][t]) for d, t in where)
    assert longest <= 100
    prompts = context_windows(encoded["train"], where, 30, 402, task.tokenizer)
    split_features = of_split(task, "train")
    slow = {"act_nll": 0.0, "act_tokens": 0, "word_nll": 0.0, "word_tokens": 0}
    one = jax.jit(lambda *arrays: reply_nll(graph, params, frozen, *arrays))
    tokens_BR, mask_BR = reply_arrays(task, "train", where)
    for b in range(len(where)):  # one reply at a time
        evidence = split_features.at(*np.array(where[b : b + 1]).T)
        at = slice(b, b + 1)
        found = one(prompts.tokens_BP[at], prompts.mask_BP[at], tokens_BR[at], mask_BR[at], evidence)
        for name in slow:
            slow[name] += float(found[name])

    policy = nnx.merge(graph, params, frozen)
    loss, metrics = jax.jit(lambda rows: sft_loss(policy, rows, 30, 0.7, None))(with_features(rows, split_features))
    assert rows["act_mask_RA"].sum() == slow["act_tokens"]
    assert rows["word_mask_RW"].sum() == slow["word_tokens"]
    act, word = slow["act_nll"] / slow["act_tokens"], slow["word_nll"] / slow["word_tokens"]
    assert act > 1
    assert word > 1
    np.testing.assert_allclose(float(metrics["act_loss"]), act, rtol=2e-5)
    np.testing.assert_allclose(float(metrics["word_loss"]), word, rtol=2e-5)
    np.testing.assert_allclose(float(loss), word + 0.7 * act, rtol=2e-5)

    # A narrower band is another number: the mask is what keeps old utterances away.
    narrow = jax.jit(lambda rows: sft_loss(policy, rows, 1, 0.7, None)[0])(with_features(rows, split_features))
    assert abs(float(narrow) - float(loss)) > 1e-3


def test_ten_dialogues_are_learned_by_heart(world, tmp_path, fast_code):
    task = world.at(tmp_path)
    numbers = [d for d, dialogue in enumerate(task.corpus.train) if dialogue.turns[0].role == "seeker"][:10]
    assert len(numbers) == 10
    packer = make_packer(task, "train", numbers)
    part = dataclasses.replace(task.corpus, train=tuple(task.corpus.train[d] for d in numbers))
    split_features = of_split(dataclasses.replace(task, corpus=part), "train")
    graph, params, frozen = world.sft
    steps = 300
    optimizer = make_optimizer(Rates(5e-3), 0.05, steps, 1.0)
    state, step = fresh_state(copy_tree(params), optimizer, task.mesh), make_step(graph, optimizer, task)
    rows = packer.pack()
    batch = shard_batch(with_features(rows, split_features), task.mesh)
    policy_loss = jax.jit(
        lambda params, rows: sft_loss(nnx.merge(graph, params, frozen), rows, task.config.data.window, 1.0, None)[1]
    )
    first = policy_loss(state.params, batch)
    for _ in range(steps):  # with dropout, as in a run
        state, _ = step(state, frozen, batch, jax.random.key(0))
    last = policy_loss(state.params, batch)
    assert first["act_loss"] > 2  # whether to propose is at the corpus' rates already
    assert first["word_loss"] > 5
    assert last["act_loss"] < 0.02
    assert last["word_loss"] < 0.04


def test_validation_means_are_over_tokens_of_all_batches(world, tmp_path):
    """Batches of different sizes, the last padded: the same means as of one batch."""
    graph, params, frozen = world.sft
    params = lively(params)
    one, many = (Validation(world.at(tmp_path, evaluation__batch=size), graph)(params, frozen) for size in (64, 5))
    assert one.keys() == {"act_loss", "word_loss", "loss", "hr@10"}
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=1e-5), name
    assert one["loss"] == pytest.approx(one["act_loss"] + one["word_loss"])
