"""One clipped update of PPO on a minibatch: the losses of slates and of sampled replies, and the step they make."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.rl import ppo
from crs_jax.runtime.sharding import in_parts
from crs_jax.training import turns
from crs_jax.training.contexts import Contexts
from crs_jax.training.judging import Graphs
from crs_jax.training.passes import actor_pass
from crs_jax.training.slates import Slates, slate_loss
from crs_jax.training.state import accumulated_gradients, apply_gradients, select

WHITENED = ("ppo", "rankwise")
"""Algorithms whose advantages are whitened, and which can have a value function."""


def has_critic(config: ConfigDict) -> bool:
    """Whether a value function is the baseline; else the mean of a context's other replies is."""
    return config.algorithm in WHITENED and not config.ppo.group_baseline


class Experience(NamedTuple):
    """What the updates of one iteration train on; leading axis C contexts, then G replies.

    Of later turns leading axes are C, then rows with a context each, then one reply (`turns.by_episode`).
    """

    contexts: Contexts
    tokens_CGR: jax.Array
    reply_mask_CGR: jax.Array
    act_CGR: jax.Array
    logp_CGR: jax.Array
    reference_CGR: jax.Array
    value_CGR: jax.Array
    advantage_CGR: jax.Array
    return_CGR: jax.Array


def only_value(learns: jax.Array, new: Any, old: Any) -> Any:
    """`new`, but the policy's part of it `old` while the policy does not learn."""
    return {**new, "policy": select(learns, new["policy"], old["policy"])}


def make_update(graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh):
    """The step of `lax.scan` over minibatches: (carry, minibatch) -> (carry, metrics), one clipped update.

    A minibatch: slates, where first tokens are summed over, and the experience of the first turn and of the later ones.
    The carry: parameters, optimizer state, the iteration's number, of which the learning rate is a function, `halted`,
    frozen arrays and KL coefficients, whether the policy learns, and the pace, which multiplies the rate.
    """
    c, algorithm = config.ppo, config.algorithm

    def loss_of(params, fixed, mini: Experience, of_act: jax.Array, of_word: jax.Array):
        """Sums over a micro-batch, divided by the tokens `of_act`, `of_word` of the whole minibatch."""
        frozen, act_kl, word_kl = fixed
        actor = nnx.merge(graphs.actor, params, frozen)
        shape = mini.tokens_CGR.shape
        likelihood, value_BR, _ = actor_pass(actor, mini.contexts, mini.tokens_CGR, mini.reply_mask_CGR, c.temperature)
        logp, entropy, value = (a.reshape(shape) for a in (likelihood.logp_BR, likelihood.entropy_BR, value_BR))
        act, word = mini.act_CGR, mini.reply_mask_CGR & ~mini.act_CGR
        surrogate, clipped = ppo.policy_loss(logp, mini.logp_CGR, mini.advantage_CGR, c.clip)
        critic, _ = ppo.value_loss(value, mini.value_CGR, mini.return_CGR, c.value_clip)
        real, of_all = mini.reply_mask_CGR, of_act + of_word
        policy_loss = ppo.masked_mean(surrogate, act, of_act) + ppo.masked_mean(surrogate, word, of_word)
        value_loss = ppo.masked_mean(critic, real, of_all)
        loss = policy_loss
        for coefficient, part, count in ((c.act_entropy, act, of_act), (c.word_entropy, word, of_word)):
            if coefficient:
                loss = loss - coefficient * ppo.masked_mean(entropy, part, count)
        if has_critic(config):
            loss = loss + c.value_coef * value_loss
        if algorithm == "grpo":  # its KL penalty is in the loss, not in the reward
            k3 = ppo.kl_k3(logp, mini.reference_CGR)
            loss = loss + act_kl * ppo.masked_mean(k3, act, of_act) + word_kl * ppo.masked_mean(k3, word, of_word)
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": ppo.masked_mean(clipped.astype(jnp.float32), real, of_all),
            "approx_kl": ppo.masked_mean(ppo.approximate_kl(logp, mini.logp_CGR), real, of_all),
            "ratio_error": jnp.where(real, jnp.abs(jnp.exp(logp - mini.logp_CGR) - 1.0), 0.0).max(),
            "square_log_ratio": ppo.masked_mean(jnp.square(logp - mini.logp_CGR), real, of_all),
        }

    def update(carry, batch: tuple[Slates | None, tuple[Experience, ...]]):
        params, opt_state, number, halted, fixed, learns, pace = carry
        slates, minis = batch
        of_act = sum(mini.act_CGR.sum() for mini in minis)
        counts = of_act, sum(mini.reply_mask_CGR.sum() for mini in minis) - of_act
        first = minis[0].tokens_CGR.shape[0] * minis[0].tokens_CGR.shape[1]  # first tokens among the act's

        def loss(params, micro: tuple[Slates | None, tuple[Experience, ...]], _):
            total, metrics = turns.summed(loss_of, params, fixed, micro[1], *counts)
            if micro[0] is not None:
                assert slates is not None
                policy = nnx.merge(graphs.actor, params, fixed[0]).policy
                loss_C = slate_loss(policy, micro[0], c.temperature, c.clip)
                added = first / of_act * loss_C.sum() / len(slates.hidden_CD)
                total = total + added
                metrics = {**metrics, "loss": total, "policy_loss": metrics["policy_loss"] + added}
            return total, metrics

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

    return update
