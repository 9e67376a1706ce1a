"""The act head by itself, before the supervised stage: what of the features says which items were recommended.

Most of what ranks items well is not in the tokens but in the features (`models/query.py`), and it is learnt in a minute
where a language model takes hours. So the query is fitted first, by the softmax over items that no one has named yet,
with the hidden state left out; the supervised stage goes on from there, the query at a fraction of its rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from crs_jax.evaluation.policies import run_batched
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import Task
from crs_jax.models.policy import MASKED, Policy, add_at
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.progress import Progress, say
from crs_jax.runtime.sharding import everywhere, on_mesh, place, shard_batch
from crs_jax.training.examples import Examples, examples, fresh_instances, training_examples
from crs_jax.training.optimizer import by_name, head_rates
from crs_jax.training.state import fresh_optimizer_state, keep_layout

KS = (1, 10, 50)


def head_logits(policy: Policy, features: ContextFeatures, key: jax.Array | None, rate: float) -> jax.Array:
    """Logits `[B, padded N]` from the features alone; what was named before is masked."""
    item_query = policy.item_query(features, key, rate)
    nothing = jnp.zeros((item_query.content.shape[0], policy.width), policy.dtype)
    logits_BN = policy.item_logits(policy.acting(nothing, item_query), policy.tables(), item_query.beside)
    return add_at(logits_BN, features.named, jnp.full(features.named.shape, MASKED))


def head_loss(policy: Policy, rows: Examples, key: jax.Array | None, rate: float) -> jax.Array:
    """Weighted mean cross-entropy over the targets, nats."""
    logp_BN = jax.nn.log_softmax(head_logits(policy, rows.features, key, rate), -1)
    weight_BY = jnp.where(rows.target_BY >= 0, rows.weight_BY, 0.0)
    chosen_BY = jnp.take_along_axis(logp_BN, jnp.maximum(rows.target_BY, 0), -1)
    return -(weight_BY * chosen_BY).sum() / jnp.maximum(weight_BY.sum(), 1e-6)


def make_head_optimizer(c: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW at `head_rates`, after a short warm-up down to a twentieth by half a cosine."""
    rates, warm = head_rates(c), min(20, max(steps // 5, 1))
    rate = rates.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        by_name(rates.of),
        optax.scale_by_learning_rate(
            optax.warmup_cosine_decay_schedule(rate / warm, rate, warm, max(steps, warm + 1), rate / 20)
        ),
    )


def trained_part(params: Any) -> dict[str, Any]:
    """What the head trains: the query and the items' biases."""
    return {"query": params["query"], "items": {"bias": params["items"]["bias"]}}


def with_part(params: Any, part: dict[str, Any]) -> Any:
    """The parameters with that part replaced."""
    return {**params, "query": part["query"], "items": {**params["items"], **part["items"]}}


def orders(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, each pass in an order of its own."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, 19, epoch]).permutation(count)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))
        epoch += 1


def fit_head(task: Task, writer: MetricsWriter, graphdef: Any, params: Any, frozen: Any) -> Any:
    """The parameters with a fitted query, laid over the mesh.

    Logs loss, and at the end hr@k of fresh validation targets over the whole catalogue (`validation/hr@10`).
    """
    c = task.config.head
    rows = training_examples(task)
    count = len(rows.target_BY)
    shards = task.mesh.shape["data"] * task.mesh.shape["fsdp"]
    size = min(c.batch, count) // shards * shards
    steps = round(c.epochs * count / size) if size else 0
    if steps == 0:
        return params
    optimizer = make_head_optimizer(c, steps)

    def step(part, average, opt_state, params, frozen, batch, key, number):
        def loss(part):
            return head_loss(nnx.merge(graphdef, with_part(params, part), frozen), batch, key, c.dropout)

        value, grads = jax.value_and_grad(loss)(part)
        updates, opt_state = optimizer.update(grads, opt_state, part)
        part = optax.apply_updates(part, updates)
        rate = jnp.maximum(1.0 - c.average, (number + 1.0) ** -0.75)
        average = jax.tree.map(lambda old, new: old + rate * (new - old), average, part)
        return *keep_layout((part, average, opt_state), task.mesh), value

    run = CompiledOnce("head step", step, task.mesh)
    part = average = place(trained_part(params), task.mesh)
    opt_state = fresh_optimizer_state(part, optimizer, task.mesh)
    key = jax.random.key(task.config.seed + 9)
    head_rates(c).show("act head", part)
    writer.drop_after("head", 0)
    with Progress(steps, "act head", "steps") as progress:
        for number, index in zip(range(1, steps + 1), orders(count, size, task.config.seed), strict=False):
            batch = shard_batch(jax.tree.map(lambda a, index=index: a[index], rows), task.mesh)
            step_key = jax.random.fold_in(key, number)
            part, average, opt_state, value = run(part, average, opt_state, params, frozen, batch, step_key, number)
            progress.update(loss=float(value))
            if number % task.config.log_every == 0 or number == steps:
                writer.write("head", number, {"loss": float(value)})
    params = place(with_part(params, average), task.mesh)
    found = head_validation(task, graphdef, params, frozen)
    writer.write("head", steps, {f"validation/{name}": value for name, value in found.items()})
    say("act head, fresh validation targets: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return params


def head_validation(task: Task, graphdef: Any, params: Any, frozen: Any) -> dict[str, float]:
    """`loss` and hr@k of the head on the fresh targets of the validation split."""
    rows = examples(task, "validation", fresh_instances(task, "validation"))
    if not len(rows.target_BY):
        return {}

    def ranks(params, frozen, batch: Examples):
        policy = nnx.merge(graphdef, params, frozen)
        logits_BN = head_logits(policy, batch.features, None, 0.0)
        target_BY1 = jnp.take_along_axis(logits_BN, jnp.maximum(batch.target_BY, 0), -1)[..., None]
        logp_BY = target_BY1[..., 0] - jax.nn.logsumexp(logits_BN, -1, keepdims=True)
        return (logits_BN[:, None] >= target_BY1).sum(-1), logp_BY

    run = jax.jit(on_mesh(ranks, task.mesh), out_shardings=everywhere(task.mesh))
    found = run_batched(task, lambda batch: run(params, frozen, batch), len(rows.target_BY), rows, "")
    rank, logp = (a_BY[rows.target_BY >= 0] for a_BY in found)
    return {"loss": float(-logp.mean(dtype=np.float64)), **{f"hr@{k}": float((rank <= k).mean()) for k in KS}}
