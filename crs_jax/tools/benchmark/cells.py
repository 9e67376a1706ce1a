"""One function a part: the program's own functions on random inputs, compiled, timed and counted."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.config import slate_contexts
from crs_jax.data.packing import slots_of
from crs_jax.inputs.task import copy_tree, count
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.rl.forward import actor_pass, policy_likelihood
from crs_jax.rl.frozen_models import Graphs, predict_signals
from crs_jax.rl.sampling import Replies, causal, positions, sample
from crs_jax.runtime.sharding import on_mesh, shard_batch
from crs_jax.tools.benchmark import counts
from crs_jax.tools.benchmark.clock import device_peak, measure
from crs_jax.tools.benchmark.timing import Patience
from crs_jax.tools.benchmark.world import (
    World,
    batch_of,
    random_contexts,
    random_experience,
    random_first_items,
    random_replies,
    random_rows,
)
from crs_jax.training.advantages import Experience, FirstItems
from crs_jax.training.optimizer import make_optimizer, ppo_rates, sft_rates
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.sft import make_step
from crs_jax.training.state import TrainState, fresh_state, keep_layout
from crs_jax.training.update import make_step as make_ppo_step

Found = dict[str, Any]


def rollout(world: World, patience: Patience) -> Found:
    """Replies of full length, and the prefill of their contexts alone: the rest is decoding."""
    task, model = world.task, world.model
    c, batch = task.config.ppo, batch_of(task.config, "rollout")
    graph, params, frozen = world.sft
    contexts = shard_batch(random_contexts(task, batch), task.mesh)

    def replies(params, frozen, contexts, key):
        return sample(
            nnx.merge(graph, params, frozen), contexts.prompt_CP, contexts.mask_CP, key, group=c.group,
            reply_tokens=batch.reply_tokens, features=contexts.features, temperature=c.temperature,
            block=c.decode_block,
        )  # fmt: skip

    def prefill(params, frozen, contexts):
        policy = nnx.merge(graph, params, frozen)
        x_CPD = policy.embed(contexts.prompt_CP, policy.tables())
        mask_CP = contexts.mask_CP
        return policy.trunk.prefill(x_CPD, positions(mask_CP), causal(mask_CP))

    arguments = [params, frozen, contexts, jax.random.key(task.config.seed)]
    found, drawn = measure(jax.jit(on_mesh(replies, task.mesh)), arguments, patience)
    tokens = int(drawn.mask_BR.sum())
    alone, _ = measure(jax.jit(on_mesh(prefill, task.mesh)), arguments[:3], patience)
    step = max(found["seconds"] - alone["seconds"], 0.0) / batch.reply_tokens
    return found | {
        "tokens": tokens,
        "flops": counts.likelihood_pass(model, batch),
        "full_length": tokens / (batch.replies * batch.reply_tokens),
        "prefill_seconds": alone["seconds"],
        "step_seconds": step,
        "step_bytes": counts.decode_bytes(model, batch),
    }


def scoring(world: World, patience: Patience) -> Found:
    """What stands between rollout and updates: actor's, reference's and reward model's passes over the replies."""
    task, graphs, frozen_models = world.task, world.graphs, world.frozen_models
    c, batch = task.config.ppo, batch_of(task.config, "scoring")
    exact = task.config.reward.relevance == "exact"
    tokens_CGR = random_replies(task, batch)
    contexts, tokens_CGR = shard_batch((random_contexts(task, batch), tokens_CGR), task.mesh)

    def scores(params, frozen_models, contexts, tokens_CGR):
        mask_CGR = jnp.ones(tokens_CGR.shape, bool)
        replies = Replies(*(a.reshape(-1, a.shape[-1]) for a in (tokens_CGR, mask_CGR, jnp.zeros(tokens_CGR.shape))))
        actor = nnx.merge(graphs.actor, params, {"policy": frozen_models.frozen})
        old = actor_pass(actor, contexts, tokens_CGR, mask_CGR, c.temperature)
        reference = policy_likelihood(
            graphs.policy, frozen_models.reference, frozen_models.frozen, contexts, replies, c.temperature
        )
        return old[:2], reference, predict_signals(graphs, frozen_models, contexts, replies, exact)[:3]

    arguments = [world.actor, frozen_models, contexts, tokens_CGR]
    found, _ = measure(jax.jit(on_mesh(scores, task.mesh)), arguments, patience)
    return found | {"tokens": batch.tokens, "flops": counts.scoring(world.model, batch)}


def ppo_state(world: World, updates: int) -> tuple[Any, TrainState]:
    """Optimizer and state of the PPO stage."""
    c = world.task.config.ppo
    optimizer = make_optimizer(ppo_rates(world.task.config), c.warmup, updates, c.clip_norm, c.decay_to)
    extra = first_extra(c.act_kl, c.decision_kl, c.word_kl)
    return optimizer, fresh_state(copy_tree(world.actor), optimizer, world.task.mesh, extra)


def make_update_step(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """Jitted (state, donated, frozen arrays, minibatch) -> (state, metrics): one clipped update of the PPO stage.

    A minibatch: first items, or None, and the experience of replies.
    """
    one = make_ppo_step(graphs, optimizer, config, mesh, ALGORITHMS[config.algorithm])

    def step(state: TrainState, frozen: Any, minibatch: tuple[FirstItems | None, Experience]):
        fixed = {"policy": frozen}, state.extra["act_kl"], state.extra["word_kl"]
        carry = (state.params, state.opt_state, state.step, state.halted, fixed, jnp.asarray(True), state.extra["pace"])
        (params, opt_state, _, halted, *_), metrics = one(carry, (minibatch[0], minibatch[1:]))
        return keep_layout(TrainState(state.step + 1, params, opt_state, halted, state.extra), mesh), metrics

    return jax.jit(on_mesh(step, mesh), donate_argnums=0)


def update(world: World, patience: Patience) -> Found:
    """One clipped update of the PPO stage on one minibatch."""
    task, batch = world.task, batch_of(world.task.config, "update")
    optimizer, state = ppo_state(world, 1000)
    minibatch = shard_batch((random_first_items(task), random_experience(task, batch)), task.mesh)
    arguments = [state, world.frozen_models.frozen, minibatch]
    del state
    step = make_update_step(world.graphs, optimizer, task.config, task.mesh)
    found, (state, _) = measure(step, arguments, patience, carries=True)
    return {
        **found,
        **learned(state, world),
        "tokens": batch.tokens,
        "flops": counts.update(world.model, batch),
    }


def learned(state: TrainState, world: World) -> Found:
    """Whether the steps were made, and what parameters, gradients and Adam's moments take at least."""
    if bool(state.halted):
        raise FloatingPointError("a step met a NaN or an infinity, so that the steps after it did nothing")
    parameters = count(state.params)
    return {"parameters": parameters, "training_bytes": counts.training_bytes(parameters)}


def iteration(world: World, patience: Patience) -> Found:
    """One whole PPO iteration."""
    task, batch = world.task, batch_of(world.task.config, "iteration")
    c = task.config.ppo
    optimizer, state = ppo_state(world, 1000)
    contexts = shard_batch(random_contexts(task, batch, slate_contexts(task.config)), task.mesh)
    jitted = make_iteration(world.graphs, optimizer, task.config, task.mesh)
    arguments = [state, world.frozen_models, world.normaliser, contexts, jax.random.key(task.config.seed)]
    del state
    found, (state, metrics) = measure(jitted, arguments, patience, carries=True)
    return {
        **found,
        **learned(state, world),
        "tokens": batch.tokens,
        "flops": counts.iteration(world.model, batch, c.epochs),
        "full_length": float(metrics["reply_length"]) / batch.reply_tokens,
        "updates": c.epochs * c.minibatches,
    }


def sft(world: World, patience: Patience) -> Found:
    """One supervised step on full rows."""
    task, o = world.task, world.task.config.sft
    graph, params, frozen = world.sft
    optimizer = make_optimizer(sft_rates(task.config), o.warmup, 1000, o.clip_norm)
    state = fresh_state(copy_tree(params), optimizer, task.mesh)
    rows = shard_batch(random_rows(task), task.mesh)
    arguments = [state, frozen, rows, jax.random.key(task.config.seed)]
    del state
    found, (state, _) = measure(make_step(graph, optimizer, task), arguments, patience, carries=True)
    acts, words = slots_of(o.row_tokens, task.config.data.act_items)
    return {
        **found,
        **learned(state, world),
        "tokens": o.rows * o.row_tokens,
        "flops": counts.sft(world.model, o.rows, o.row_tokens, words, acts),
    }


PARTS = {"rollout": rollout, "scoring": scoring, "update": update, "iteration": iteration, "sft": sft}


def run(part: str, world: World, patience: Patience) -> Found:
    """The part's measurements; `device_peak_bytes` only where this cell raised the process' highest."""
    before = device_peak() or 0
    found = PARTS[part](world, patience)
    after = device_peak()
    gc.collect()
    return found | ({"device_peak_bytes": after} if after and after > before else {})
