"""Passes over contexts and their replies: of the actor-critic, and of a policy that is held fixed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.likelihood import first_logp
from crs_jax.models.query import Wish
from crs_jax.rl.rollout import Replies
from crs_jax.rl.scoring import TokenLikelihood, parts, reply_likelihood, tree_hidden
from crs_jax.training.contexts import Contexts, after_rec


def actor_pass(
    actor: ActorCritic, contexts: Contexts, tokens_CGR: jax.Array, reply_mask_CGR: jax.Array, temperature: float
) -> tuple[TokenLikelihood, jax.Array, jax.Array]:
    """Likelihoods and values of reply tokens, `[B, R]` each, B = C * G, and `first_logp` `[C, N + 1]`."""
    C, G, R = tokens_CGR.shape
    args = (contexts.prompt_CP, contexts.mask_CP, tokens_CGR, reply_mask_CGR)
    items_NW = actor.policy.item_table()
    hidden = tree_hidden(actor.policy, items_NW, *args).before.reshape(C * G, R, -1)
    flat = tokens_CGR.reshape(C * G, R), reply_mask_CGR.reshape(C * G, R)
    wish = actor.policy.wish(contexts.evidence)
    first_CN = first_logp(actor.policy, items_NW, hidden[::G, 0], wish, temperature)
    wish = repeated(wish, G)
    act_BR = parts(*flat, actor.policy.layout).act_BR
    seen = jnp.where(act_BR[..., None], hidden + wish.vector[:, None].astype(hidden.dtype), hidden)
    if actor.critic is not None:
        seen = tree_hidden(actor.critic, actor.critic.item_table(), *args).before.reshape(C * G, R, -1)
    return reply_likelihood(actor.policy, items_NW, hidden, *flat, temperature, wish), actor.values(seen), first_CN


def repeated(wish: Wish, group: int) -> Wish:
    """Of contexts, for each of their replies."""
    return jax.tree.map(lambda a: jnp.repeat(a, group, axis=0), wish)


def policy_likelihood(
    graph: Any, params: Any, frozen: Any, contexts: Contexts, replies: Replies, temperature: float
) -> TokenLikelihood:
    """Of replies under a policy, `[B, R]`."""
    C, (B, R) = contexts.prompt_CP.shape[0], replies.tokens_BR.shape
    policy = nnx.merge(graph, params, frozen)
    items_NW = policy.item_table()
    tokens, mask = (a.reshape(C, B // C, R) for a in (replies.tokens_BR, replies.mask_BR))
    hidden = tree_hidden(policy, items_NW, contexts.prompt_CP, contexts.mask_CP, tokens, mask)
    before_BRD = hidden.before.reshape(B, R, -1)
    wish = repeated(policy.wish(contexts.evidence), B // C)
    return reply_likelihood(policy, items_NW, before_BRD, replies.tokens_BR, replies.mask_BR, temperature, wish)


def first_of(graph: Any, params: Any, frozen: Any, contexts: Contexts, temperature: float) -> jax.Array:
    """Log-probabilities of first tokens `[C, N + 1]` under a policy (`first_logp`)."""
    policy = nnx.merge(graph, params, frozen)
    hidden_CD, items_NW, wish = after_rec(policy, contexts)
    return first_logp(policy, items_NW, hidden_CD, wish, temperature)
