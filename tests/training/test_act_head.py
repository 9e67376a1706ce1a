"""The act head: its loss against a loop, what it masks, what it may change, and that it learns what was planted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_task import change

from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training.act_head import (
    KS,
    fit_head,
    head_logits,
    head_loss,
    head_validation,
    orders,
    trained_part,
    with_part,
)
from crs_jax.training.examples import SOON, examples, fresh_instances, training_examples


@pytest.fixture(scope="module")
def rows(world):
    return examples(world.task, "train", fresh_instances(world.task, "train"), later=0.5)


def test_examples_are_fresh_targets(world, rows):
    task = world.task
    instances = fresh_instances(task, "train")
    assert len(rows.target_BY) == len(instances) > 20
    for b, instance in enumerate(instances):
        before = task.corpus.train[instance.dialogue].turns[: instance.turn]
        named = {task.corpus.catalogue.index[i] for turn in before for i in turn.items}
        assert rows.target_BY[b][rows.weight_BY[b] == 1].tolist() == list(instance.fresh)
        assert not named & set(rows.target_BY[b].tolist())
        assert named == {row for row in rows.features.named[b].tolist() if row >= 0}


def test_seekers_and_later_mentions_are_examples_too(world, tmp_path):
    """Against a loop over all messages: who named what for the first time, at once and within the next utterances."""
    task = world.at(tmp_path, head__seeker=0.5, head__later=0.25)
    rows = training_examples(task)
    expected = []
    for d in task.corpus.train:
        first = {}
        for t, turn in enumerate(d.turns):
            for item in turn.items:
                first.setdefault(item, t)
        for t, turn in enumerate(d.turns):
            weight = 1.0 if turn.role == "recommender" else 0.5
            at_once = {task.corpus.catalogue.index[i]: weight for i in turn.items if first[i] == t}
            soon = {task.corpus.catalogue.index[i]: weight / 4 for i in first if t < first[i] <= t + SOON}
            if t and at_once:
                expected.append(tuple(sorted({**soon, **at_once}.items())))
    found = [
        tuple(sorted((row, w) for row, w in zip(rows_Y, weight_Y, strict=True) if row >= 0))
        for rows_Y, weight_Y in zip(rows.target_BY.tolist(), rows.weight_BY.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert len(found) > len(fresh_instances(task, "train"))
    alone = training_examples(world.at(tmp_path, head__seeker=0.0, head__later=0.0))
    assert len(alone.target_BY) == len(fresh_instances(task, "train"))
    assert set(alone.weight_BY.ravel().tolist()) == {0.0, 1.0}


def test_loss_equals_a_loop(world, rows):
    graph, params, frozen = world.sft
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), params)
    policy = nnx.merge(graph, params, frozen)
    some = jax.tree.map(lambda a: a[:12], rows)
    logits_BN = np.asarray(head_logits(policy, some.features, None, 0.0), np.float64)
    N = world.task.layout.num_items
    total, count = 0.0, 0
    for b in range(12):
        named = {row for row in some.features.named[b].tolist() if row >= 0}
        open_N = [n for n in range(N) if n not in named]
        assert (logits_BN[b, list(named)] < -1e8).all()
        mass = np.log(np.exp(logits_BN[b, open_N]).sum())
        for target, weight in zip(some.target_BY[b], some.weight_BY[b], strict=True):
            if target >= 0:
                total, count = total + weight * (mass - logits_BN[b, target]), count + weight
    assert 0 < float((some.weight_BY == 0.5).sum()) < float((some.weight_BY == 1).sum())
    assert float(head_loss(policy, some, None, 0.0)) == pytest.approx(total / count, rel=1e-5)


def test_orders_are_passes_over_all():
    found = [index for index, _ in zip(orders(10, 3, 0), range(6), strict=False)]
    assert all(len(set(index.tolist())) == 3 for index in found)
    first, second = (np.concatenate(found[n : n + 3]) for n in (0, 3))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 9
    assert first.tolist() != second.tolist()


def test_it_learns_what_was_planted_and_touches_nothing_else(world, tmp_path):
    """Targets planted by the evidence (the item most like what was asked): from chance to nearly always in the top."""
    task = world.at(tmp_path, head__epochs=60.0, head__batch=16, head__dropout=0.0, head__weight_decay=0.0)
    content_NE = np.asarray(world.sft[2]["items"]["content"])[: task.layout.num_items]
    corpus = dataclasses.replace(task.corpus, validation=task.corpus.train)
    task = dataclasses.replace(task, corpus=corpus)
    before = head_validation(task, *world.sft)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        params = fit_head(task, writer, *world.sft)
    after = head_validation(task, world.sft[0], params, world.sft[2])
    assert after["loss"] < before["loss"] - 0.5
    assert after["hr@10"] > before["hr@10"] + 0.1
    assert content_NE.shape[0] == 40
    lines = read_log(tmp_path / "metrics.jsonl")
    assert {line["stage"] for line in lines} == {"head"}
    assert lines[-1]["validation/hr@10"] == pytest.approx(after["hr@10"])
    same = with_part(params, trained_part(world.sft[1]))
    jax.tree.map(np.testing.assert_array_equal, same, world.sft[1])


def test_no_epochs_no_head(world, tmp_path):
    task = world.at(tmp_path, head__epochs=0.0)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        assert fit_head(task, writer, *world.sft) is world.sft[1]


def test_validation_counts_each_target_once(world, tmp_path):
    """Whatever the batch, a last one that is padded included."""
    configs = [change(world.task.config, evaluation__batch=size) for size in (8, 64)]
    found = [head_validation(dataclasses.replace(world.task, config=config), *world.sft) for config in configs]
    assert found[0].keys() == {"loss", *(f"hr@{k}" for k in KS)}
    assert found[0] == pytest.approx(found[1], rel=1e-5)
