"""What an iteration of PPO logs of its rollout, beside what its updates say. Masked means over the global batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.rl import plackett_luce, ppo
from crs_jax.rl.algorithms import Algorithm
from crs_jax.rl.frozen_models import FrozenModels
from crs_jax.rl.reward import members
from crs_jax.signals.registry import rewards
from crs_jax.training.advantages import Advantages, has_critic
from crs_jax.training.checks import gaps
from crs_jax.training.health import measures
from crs_jax.training.turns import Answer, by_turn


def measured(
    batch: Advantages, actor: ActorCritic, frozen_models: FrozenModels, answers: Answer | None, algorithm: Algorithm,
    config: ConfigDict,
) -> dict[str, jax.Array]:  # fmt: skip
    """Inside jit; the actor is that of before the updates."""
    rows = batch.rows
    found = of_rewards(rows, len(members(frozen_models.reward)) > 1) | of_replies(rows)
    if has_critic(algorithm, config):
        found["explained_variance"] = ppo.explained_variance(rows.value_BR, batch.return_BR, rows.replies.mask_BR)
    if algorithm.lists and batch.first is not None and batch.known is not None:
        found["reward/list"] = plackett_luce.gain(batch.known.score_CA, batch.first.beside).mean()
    sampled_BR, reference_BR = rows.replies.logp_BR, rows.reference.logp_BR
    found |= gaps(rows.old.logp_BR, rows.masks, sampler=sampled_BR, reference=reference_BR)
    found |= measures(rows.replies.tokens_BR, rows.masks, actor.policy.items.content[...][:, -1])
    if answers is not None:
        found |= by_turn(rows, config.ppo.turns, answers, actor.policy.layout.pad)
    return found


def of_rewards(rows: Any, ensemble: bool) -> dict[str, jax.Array]:
    """Rewards of replies, and each signal where it exists."""
    scores, alive_B = rows.scores, rows.alive_B
    found = {
        f"reward/{name}": ppo.masked_mean(column, jnp.isfinite(column))
        for name, column in zip(rewards(), scores.signal_BS.T, strict=False)
    }
    if ensemble:
        found["reward/spread"] = ppo.masked_mean(scores.spread_B, alive_B)
    return found | {
        "reward": ppo.masked_mean(scores.total_B, alive_B),
        "reward/act": ppo.masked_mean(scores.act_B, alive_B),
        "reward/std": scores.total_B.std(where=alive_B),
    }


def of_replies(rows: Any) -> dict[str, jax.Array]:
    """KL to the SFT policy in nats a reply, entropies in nats a token, lengths and shares of replies."""
    mask, masks, alive_B = rows.replies.mask_BR, rows.masks, rows.alive_B
    count = alive_B.sum()
    kl_act, kl_word = (ppo.masked_sum(rows.k1_BR, part) / count for part in (masks.act_BR, masks.word_BR))
    proposed_B = (masks.items_BM >= 0).sum(-1)
    return {
        "kl": kl_act + kl_word,
        "kl/act": kl_act,
        "kl/decision": ppo.masked_sum(rows.decision_BR, masks.act_BR) / count,
        "kl/word": kl_word,
        "kl/k3": ppo.masked_sum(ppo.kl_k3(rows.old.logp_BR, rows.reference.logp_BR), mask) / count,
        "kl/max": jnp.where(mask, jnp.abs(rows.k1_BR), 0.0).max(),
        "entropy/act": ppo.masked_mean(rows.old.entropy_BR, masks.act_BR),
        "entropy/word": ppo.masked_mean(rows.old.entropy_BR, masks.word_BR),
        "sampler_gap": jnp.where(mask, jnp.abs(rows.old.logp_BR - rows.replies.logp_BR), 0.0).max(),
        "reply_length": ppo.masked_mean(mask.sum(-1), alive_B),
        "ended": ppo.masked_mean(masks.ended_B, alive_B),
        "items_per_reply": ppo.masked_mean(proposed_B, alive_B),
        "recommends": ppo.masked_mean(proposed_B > 0, alive_B),
    }
