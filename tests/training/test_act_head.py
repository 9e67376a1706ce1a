"""The act head: its loss against a loop, what it masks, what it may change, and that it learns what was planted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_task import change

from crs_jax.metrics import MetricsWriter, read_json_lines
from crs_jax.training.act_head import (
    KS,
    examples,
    fit_head,
    fresh_instances,
    head_logits,
    head_loss,
    head_validation,
    orders,
    trained_part,
    with_part,
)
from crs_jax.training.replies import Wishes


@pytest.fixture(scope="module")
def rows(world):
    return examples(Wishes(world.task, "train"), fresh_instances(world.task, "train"))


def test_examples_are_fresh_targets(world, rows):
    task = world.task
    instances = fresh_instances(task, "train")
    assert len(rows.target_BY) == len(instances) > 20
    for b, instance in enumerate(instances):
        before = task.corpus.train[instance.dialogue].turns[: instance.turn]
        named = {task.corpus.catalogue.index[i] for turn in before for i in turn.items}
        targets = [row for row in rows.target_BY[b].tolist() if row >= 0]
        assert targets == list(instance.fresh)
        assert not named & set(targets)
        assert named == {row for row in rows.evidence.named[b].tolist() if row >= 0}


def test_loss_equals_a_loop(world, rows):
    graph, params, frozen = world.sft
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), params)
    policy = nnx.merge(graph, params, frozen)
    some = jax.tree.map(lambda a: a[:12], rows)
    logits_BN = np.asarray(head_logits(policy, some.evidence, None, 0.0), np.float64)
    N = world.task.layout.num_items
    total, count = 0.0, 0
    for b in range(12):
        named = {row for row in some.evidence.named[b].tolist() if row >= 0}
        open_N = [n for n in range(N) if n not in named]
        assert (logits_BN[b, list(named)] < -1e8).all()
        mass = np.log(np.exp(logits_BN[b, open_N]).sum())
        for target in some.target_BY[b]:
            if target >= 0:
                total, count = total + mass - logits_BN[b, target], count + 1
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
        params = fit_head(task, writer, *world.sft, Wishes(task, "train"))
    after = head_validation(task, world.sft[0], params, world.sft[2])
    assert after["loss"] < before["loss"] - 0.5
    assert after["hr@10"] > before["hr@10"] + 0.1
    assert content_NE.shape[0] == 40
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert {line["stage"] for line in lines} == {"head"}
    assert lines[-1]["validation/hr@10"] == pytest.approx(after["hr@10"])
    same = with_part(params, trained_part(world.sft[1]))
    jax.tree.map(np.testing.assert_array_equal, same, world.sft[1])


def test_no_epochs_no_head(world, tmp_path):
    task = world.at(tmp_path, head__epochs=0.0)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        assert fit_head(task, writer, *world.sft, Wishes(task, "train")) is world.sft[1]


def test_validation_counts_each_target_once(world, tmp_path):
    """Whatever the batch, a last one that is padded included."""
    configs = [change(world.task.config, evaluation__batch=size) for size in (8, 64)]
    found = [head_validation(dataclasses.replace(world.task, config=config), *world.sft) for config in configs]
    assert found[0].keys() == {"loss", *(f"hr@{k}" for k in KS)}
    assert found[0] == pytest.approx(found[1], rel=1e-5)
