"""The first function of an iteration: the policy's replies to contexts, and the items it might propose first.

With `config.ppo.turns` above 1 an episode goes on after the first reply (`training/turns.py`): later replies are rows
with contexts of their own.
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
from crs_jax.models.policy import Policy
from crs_jax.rl import all_acts
from crs_jax.rl.algorithms import Algorithm
from crs_jax.rl.contexts import Contexts, after_rec
from crs_jax.rl.frozen_models import FrozenModels, Graphs
from crs_jax.rl.sampling import sample
from crs_jax.runtime.sharding import after, in_parts
from crs_jax.training.batch import Candidates, Rollout, RolloutBatch
from crs_jax.training.episodes import Continuation
from crs_jax.training.state import TrainState
from crs_jax.training.turns import go_on, silenced


def replied_to(tree: Any, count: int) -> Any:
    """Rows of the `count` contexts, evenly apart, that are replied to."""
    return jax.tree.map(lambda a: a.reshape(count, len(a) // count, *a.shape[1:])[:, 0], tree)


def frozen_of(config: ConfigDict, frozen_models: FrozenModels) -> dict[str, Any]:
    """The actor-critic's frozen arrays."""
    return {"policy": frozen_models.frozen} | (
        {"critic": frozen_models.frozen} if config.model.value == "separate" else {}
    )


def actor_of(graphs: Graphs, config: ConfigDict, frozen_models: FrozenModels, params: Any) -> ActorCritic:
    """The actor-critic of the parameters; inside jit."""
    return nnx.merge(graphs.actor, params, frozen_of(config, frozen_models))


def make_rollout(
    graphs: Graphs, config: ConfigDict, mesh: Mesh, algorithm: Algorithm, continuation: Continuation | None
) -> Callable:
    """(state, frozen models, contexts, key, *seeking) -> `Rollout`; inside jit."""
    c = config.ppo
    propose = make_candidates(config, mesh, drawn=0 if algorithm.lists else c.all_acts // 4)

    def reply(policy: Policy, contexts: Contexts, key: jax.Array, alive_B: jax.Array | None = None) -> RolloutBatch:
        B = c.contexts * c.group
        replies = sample(
            policy, contexts.prompt_CP, contexts.mask_CP, key, group=B // len(contexts.prompt_CP),
            reply_tokens=config.data.reply_tokens, features=contexts.features, temperature=c.temperature,
            block=c.decode_block,
        )  # fmt: skip
        if alive_B is None:
            return RolloutBatch(contexts, replies, jnp.ones(B, bool))
        return RolloutBatch(contexts, silenced(replies, alive_B, policy.layout.pad), alive_B)

    def one_turn(state: TrainState, frozen_models: FrozenModels, every: Contexts, key: jax.Array) -> Rollout:
        policy = actor_of(graphs, config, frozen_models, state.params).policy
        candidates = propose(policy, every, jax.random.fold_in(key, 1))
        contexts = replied_to(every, c.contexts)
        contexts = contexts if candidates is None else after(contexts, candidates.first.kind_C2)
        return Rollout(every, candidates, (reply(policy, contexts, key),))

    def several(
        state: TrainState, frozen_models: FrozenModels, every: Contexts, key: jax.Array, *seeking: Any
    ) -> Rollout:
        assert continuation is not None
        policy = actor_of(graphs, config, frozen_models, state.params).policy
        begun = one_turn(state, frozen_models, every, key)
        later, answers = go_on(
            continuation, lambda *given: reply(policy, *given), seeking, begun.turns[0], c.turns,
            later_key(key, config), frozen_models.frozen,
        )  # fmt: skip
        return begun._replace(turns=(*begun.turns, later), answers=answers)

    return one_turn if continuation is None else several


def later_key(key: jax.Array, config: ConfigDict) -> jax.Array:
    """Of the turns after the first, from the rollout's."""
    return jax.random.fold_in(key, 2 * config.data.reply_tokens)


def make_candidates(config: ConfigDict, mesh: Mesh, drawn: int) -> Callable:
    """(policy, contexts, key) -> `Candidates`, or None where first items learn from sampled replies only; inside jit.

    Beside the likeliest items `drawn` of them are drawn from the rest.
    """
    c = config.ppo

    def propose(policy: Policy, contexts: Contexts, key: jax.Array) -> Candidates:
        def some(given: tuple[Contexts, jax.Array]) -> Candidates:
            contexts, key = given
            hidden_CD, tables, item_query = after_rec(policy, contexts)
            first = first_token(policy, tables, hidden_CD, item_query, c.temperature)
            row_CA, weight_CA = all_acts.choose(first.item_CN, c.all_acts, drawn, key)
            first = all_acts.at(first, row_CA)
            return Candidates(None, hidden_CD, row_CA, weight_CA, weight_CA / jnp.exp(first.item_CN), first)

        parts = len(contexts.prompt_CP) // c.contexts  # no more at once than are replied to
        keys = jax.random.split(jax.random.split(key, 3)[0], parts)
        cut = in_parts(contexts, parts, mesh)
        return lax.map(some, (cut, keys))._replace(contexts=cut)

    return propose if c.all_acts else lambda *_: None
