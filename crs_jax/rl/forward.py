"""Passes over contexts and their replies: of the actor-critic, and of a policy that is held fixed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.decisions import normalised
from crs_jax.models.likelihood import FirstToken, first_token
from crs_jax.models.policy import Policy, Tables
from crs_jax.models.query import ItemQuery
from crs_jax.rl.contexts import Contexts, after_rec
from crs_jax.rl.sampling import Replies
from crs_jax.rl.scoring import TokenLikelihood, reply_likelihood, token_masks, tree_hidden


def actor_pass(
    actor: ActorCritic, contexts: Contexts, tokens_CGR: jax.Array, reply_mask_CGR: jax.Array, temperature: float
) -> tuple[TokenLikelihood, jax.Array, FirstToken]:
    """Likelihoods and values of reply tokens, `[B, R]` each, B = C * G, and the contexts' first tokens."""
    given = contexts, tokens_CGR, reply_mask_CGR
    likelihood, first, hidden, item_query = _pass(actor.policy, *given, temperature)
    B, R = likelihood.logp_BR.shape
    if actor.critic is None:
        act_BR = token_masks(tokens_CGR.reshape(B, R), reply_mask_CGR.reshape(B, R), actor.policy.layout).act_BR
        seen = normalised(hidden.astype(jnp.float32))
        seen = jnp.where(act_BR[..., None], seen + item_query.vector[:, None], seen)
    else:
        seen = normalised(_before(actor.critic, actor.critic.tables(), *given).astype(jnp.float32))
    return likelihood, actor.values(seen), first


def policy_pass(
    graph: Any, params: Any, frozen: Any, contexts: Contexts, replies: Replies, temperature: float
) -> tuple[TokenLikelihood, FirstToken]:
    """Likelihoods of reply tokens `[B, R]` under a policy, and of the contexts' first tokens, from one pass."""
    C, (B, R) = contexts.prompt_CP.shape[0], replies.tokens_BR.shape
    tokens, mask = (a.reshape(C, B // C, R) for a in (replies.tokens_BR, replies.mask_BR))
    return _pass(nnx.merge(graph, params, frozen), contexts, tokens, mask, temperature)[:2]


def policy_likelihood(
    graph: Any, params: Any, frozen: Any, contexts: Contexts, replies: Replies, temperature: float
) -> TokenLikelihood:
    """Of replies under a policy, `[B, R]`."""
    return policy_pass(graph, params, frozen, contexts, replies, temperature)[0]


def _before(policy: Policy, tables: Tables, contexts: Contexts, *replies: jax.Array) -> jax.Array:
    """Hidden states that predict each reply token, `[B, R, D]`."""
    hidden = tree_hidden(policy, tables, contexts.prompt_CP, contexts.mask_CP, *replies).before
    return hidden.reshape(-1, *hidden.shape[2:])


def _pass(
    policy: Policy, contexts: Contexts, tokens_CGR: jax.Array, mask_CGR: jax.Array, temperature: float
) -> tuple[TokenLikelihood, FirstToken, jax.Array, ItemQuery]:
    """Likelihoods, first tokens, hidden states and the item query of each reply's context."""
    G, R = tokens_CGR.shape[1:]
    tables, item_query = policy.tables(), policy.item_query(contexts.features)
    hidden_BRD = _before(policy, tables, contexts, tokens_CGR, mask_CGR)
    first = first_token(policy, tables, hidden_BRD[::G, 0], item_query, temperature)
    item_query = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), item_query)
    tokens_BR, mask_BR = tokens_CGR.reshape(-1, R), mask_CGR.reshape(-1, R)
    likelihood = reply_likelihood(policy, tables, hidden_BRD, tokens_BR, mask_BR, temperature, item_query)
    return likelihood, first, hidden_BRD, item_query


def first_of(graph: Any, params: Any, frozen: Any, contexts: Contexts, temperature: float) -> FirstToken:
    """Of the contexts, under a policy."""
    policy = nnx.merge(graph, params, frozen)
    hidden_CD, tables, item_query = after_rec(policy, contexts)
    return first_token(policy, tables, hidden_CD, item_query, temperature)
