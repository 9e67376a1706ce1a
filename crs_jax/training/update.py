"""The fourth function of an iteration: epochs of clipped updates over minibatches, held within a trust region.

A context's replies, and all rows of the episodes that began there, stay in one minibatch. How far all updates of an
iteration move the policy is bounded (`training/trust.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.likelihood import first_token
from crs_jax.rl import all_acts, ppo
from crs_jax.rl.algorithms import Algorithm
from crs_jax.rl.forward import actor_pass
from crs_jax.rl.frozen_models import FrozenModels, Graphs
from crs_jax.runtime.sharding import in_parts
from crs_jax.training import turns
from crs_jax.training.advantages import Advantages, Experience, FirstItems, has_critic
from crs_jax.training.batch import RolloutBatch
from crs_jax.training.rollout import frozen_of
from crs_jax.training.state import TrainState, accumulated_gradients, apply_gradients, select
from crs_jax.training.trust import Moved, next_pace, shortened


def only_value(learns: jax.Array, new: Any, old: Any) -> Any:
    """`new`, but the policy's part of it `old` while the policy does not learn."""
    return {**new, "policy": select(learns, new["policy"], old["policy"])}


Minibatch = tuple[FirstItems | None, tuple[Experience, ...]]


def make_step(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh, algorithm: Algorithm) -> Callable:
    """The step of `lax.scan` over minibatches: (carry, minibatch) -> (carry, metrics), one clipped update.

    A minibatch: first items, where first tokens are summed over, and the experience of the first turn and of the later
    ones. The carry: parameters, optimizer state, the iteration's number, of which the learning rate is a function,
    `halted`, what `make_loss` takes as fixed, whether the policy learns, and the pace, which multiplies the rate.
    """
    c = config.ppo
    of_replies, of_items = make_loss(graphs, config, algorithm), make_first_loss(graphs, config, algorithm)

    def step(carry, batch: Minibatch):
        params, opt_state, number, halted, fixed, learns, pace = carry
        items, replies = batch
        of_act = sum(some.act_CGR.sum() for some in replies)
        counts = of_act, sum(some.reply_mask_CGR.sum() for some in replies) - of_act
        first = replies[0].tokens_CGR.shape[0] * replies[0].tokens_CGR.shape[1]  # first tokens among the act's
        weight = first / jnp.maximum(of_act, 1) / (len(items.hidden_CD) if items is not None else 1)

        def loss(params, micro: Minibatch, _):
            total, metrics = turns.summed(of_replies, params, fixed, micro[1], *counts)
            added = weight * of_items(params, fixed, micro[0])
            total = total + added
            return total, {**metrics, "loss": total, "policy_loss": metrics["policy_loss"] + added}

        each, grads = accumulated_gradients(loss, params, in_parts(batch, c.accumulate, mesh))
        metrics = {name: value.max() if name == "ratio_error" else value.sum() for name, value in each.items()}
        if c.value_warmup:
            grads = only_value(learns, grads, jax.tree.map(jnp.zeros_like, grads))
        before = params
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, params, opt_state, jnp.isfinite(metrics["loss"]) & ~halted, number, pace
        )
        if c.value_warmup:  # where the gradient is 0, weight decay still moves
            params = only_value(learns, params, before)
        carry = (params, opt_state, number, halted | ~made, fixed, learns, pace)
        return carry, {**metrics, "grad_norm": norm}

    return step


def make_loss(graphs: Graphs, config: ConfigDict, algorithm: Algorithm) -> Callable:
    """(params, fixed, experience, act tokens, words) -> (loss, metrics): a micro-batch's part of the means.

    `fixed`: the actor's frozen arrays, and the KL coefficients of acts and words.
    """
    c, critic = config.ppo, has_critic(algorithm, config)

    def loss(params, fixed, some: Experience, of_act: jax.Array, of_word: jax.Array):
        frozen, act_kl, word_kl = fixed
        actor = nnx.merge(graphs.actor, params, frozen)
        shape = some.tokens_CGR.shape
        likelihood, value_BR, _ = actor_pass(actor, some.contexts, some.tokens_CGR, some.reply_mask_CGR, c.temperature)
        logp, entropy, value = (a.reshape(shape) for a in (likelihood.logp_BR, likelihood.entropy_BR, value_BR))
        act, word = some.act_CGR, some.reply_mask_CGR & ~some.act_CGR
        surrogate, clipped = ppo.policy_loss(logp, some.logp_CGR, some.advantage_CGR, c.clip)
        squares, _ = ppo.value_loss(value, some.value_CGR, some.return_CGR, c.value_clip)
        real, of_all = some.reply_mask_CGR, of_act + of_word
        policy_loss = ppo.masked_mean(surrogate, act, of_act) + ppo.masked_mean(surrogate, word, of_word)
        value_loss = ppo.masked_mean(squares, real, of_all)
        total = policy_loss + (c.value_coef * value_loss if critic else 0.0)
        for coefficient, part, count in ((c.act_entropy, act, of_act), (c.word_entropy, word, of_word)):
            if coefficient:
                total = total - coefficient * ppo.masked_mean(entropy, part, count)
        if algorithm.kl_in_loss:
            k3 = ppo.kl_k3(logp, some.reference_CGR)
            total = total + act_kl * ppo.masked_mean(k3, act, of_act) + word_kl * ppo.masked_mean(k3, word, of_word)
        return total, {
            "loss": total,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": ppo.masked_mean(clipped.astype(jnp.float32), real, of_all),
            "approx_kl": ppo.masked_mean(ppo.approximate_kl(logp, some.logp_CGR), real, of_all),
            "ratio_error": jnp.where(real, jnp.abs(jnp.exp(logp - some.logp_CGR) - 1.0), 0.0).max(),
            "square_log_ratio": ppo.masked_mean(jnp.square(logp - some.logp_CGR), real, of_all),
        }

    return loss


def make_first_loss(graphs: Graphs, config: ConfigDict, algorithm: Algorithm) -> Callable:
    """(params, fixed, first items) -> their summed loss; 0 where first tokens are sampled alone."""
    c = config.ppo

    def loss(params, fixed, items: FirstItems) -> jax.Array:
        policy = nnx.merge(graphs.actor, params, fixed[0]).policy
        item_query = policy.item_query(items.features)
        first = first_token(policy, policy.tables(), items.hidden_CD, item_query, c.temperature)
        first = all_acts.at(first, items.acts.row_CA)
        return algorithm.first_loss(first, items.acts, items.beside, c.clip).sum()

    return loss if c.all_acts else lambda *_: 0.0


def make_update(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh, algorithm: Algorithm) -> Callable:
    """(state, frozen models, advantages, key) -> (state, metrics): all updates of an iteration; inside jit."""
    c = config.ppo
    step = make_step(graphs, optimizer, config, mesh, algorithm)

    def update(state: TrainState, frozen_models: FrozenModels, batch: Advantages, key: jax.Array):
        def epoch(carry, epoch_key):
            order_C = jax.random.permutation(epoch_key, c.contexts)
            items, replies = batch.first, jax.tree.map(lambda a: a[order_C], batch.replies)
            if items is not None:
                order_C = jax.random.permutation(jax.random.fold_in(epoch_key, 1), len(items.hidden_CD))
                items = jax.tree.map(lambda a: a[order_C], items)
            return lax.scan(step, carry, in_parts((items, replies), c.minibatches, mesh))

        finite, learns, pace = all_finite(batch), state.step >= c.value_warmup, state.extra["pace"]
        fixed = frozen_of(config, frozen_models), state.extra["act_kl"], state.extra["word_kl"]
        carry = (state.params, state.opt_state, state.step, state.halted | ~finite, fixed, learns, pace)
        (params, opt_state, _, halted, *_), made = lax.scan(epoch, carry, jax.random.split(key, c.epochs))

        def moved(policy_params: Any) -> Moved:
            actor = nnx.merge(graphs.actor, {**params, "policy": policy_params}, fixed[0])
            return how_far(actor, batch, c.temperature)

        policy_params, way, share = shortened(moved, state.params["policy"], params["policy"], c.step_kl)
        params = {**params, "policy": policy_params}
        extra = select(~halted & learns, adapted(state.extra, batch.rows, share, c), state.extra)
        metrics = {
            "step_kl/act": way.act,
            "step_kl/word": way.word,
            "step_kl/share": share,
            "pace": pace,
            "rewards_finite": finite,
            "halted": halted,
            "ratio_error": made.pop("ratio_error")[0, 0],
            "check/ratio": jnp.sqrt(made.pop("square_log_ratio")[0, 0]),
            **{name: value.mean() for name, value in made.items()},
        }
        return TrainState(state.step + 1, params, opt_state, halted, extra), metrics

    return update


def all_finite(batch: Advantages) -> jax.Array:
    """Whether rewards and old log-probabilities are."""
    rows = batch.rows
    finite = jnp.isfinite(rows.reward_BR).all() & jnp.isfinite(rows.old.logp_BR).all() & rows.finite_B.all()
    for known in () if batch.known is None else batch.known:
        finite = finite & jnp.isfinite(known).all()
    return finite


def how_far(actor: ActorCritic, batch: Advantages, temperature: float) -> Moved:
    """KL of the policy that sampled to the actor's, on the first turn: first tokens exactly, others by k3."""
    begun, rows = batch.replies[0], batch.rows
    found, _, now = actor_pass(actor, begun.contexts, begun.tokens_CGR, begun.reply_mask_CGR, temperature)
    before, B = rows.first.joint, len(found.logp_BR)
    first_C = (jnp.exp(before) * (before - now.joint)).sum(1)
    k3_BR = ppo.approximate_kl(found.logp_BR, rows.old.logp_BR[:B])
    later_BR = rows.masks.act_BR[:B].at[:, 0].set(False)
    word = ppo.masked_sum(k3_BR, rows.masks.word_BR[:B]) / B
    return Moved(first_C.mean() + ppo.masked_sum(k3_BR, later_BR) / B, word)


def adapted(extra: dict[str, jax.Array], rows: RolloutBatch, share: jax.Array, c: ConfigDict) -> dict[str, jax.Array]:
    """KL coefficients towards their targets, and the pace of the next iteration."""
    count = rows.alive_B.sum()
    new = {**extra, "pace": next_pace(extra["pace"], share)}
    for part, mask_BR in (("act", rows.masks.act_BR), ("word", rows.masks.word_BR)):
        name, target = f"{part}_kl", c[f"{part}_kl_target"]
        if target > 0:
            measured = ppo.masked_sum(rows.k1_BR, mask_BR) / count
            new[name] = ppo.adapt_kl_coefficient(extra[name], measured, target, count, c.kl_horizon)
    return new
