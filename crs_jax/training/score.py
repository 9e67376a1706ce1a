"""The second function of an iteration: what policy, SFT policy and reward model say of what was sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.layout import Layout
from crs_jax.rl import all_acts, ppo
from crs_jax.rl.forward import actor_pass, first_of, policy_pass
from crs_jax.rl.frozen_models import FrozenModels, Graphs, act_scores, predict_signals
from crs_jax.rl.reward import Normaliser, Scores, score
from crs_jax.rl.turns import permutation
from crs_jax.runtime.sharding import after
from crs_jax.signals.registry import SIGNALS
from crs_jax.training.batch import Candidates, Rollout, RolloutBatch
from crs_jax.training.rollout import actor_of, later_key
from crs_jax.training.state import TrainState
from crs_jax.training.turns import turn_keys


def make_score(graphs: Graphs, config: ConfigDict) -> Callable:
    """(state, frozen models, normaliser, rollout, key) -> the rollout with its scores; `key` is the rollout's.

    Inside jit.
    """
    c = config.ppo
    shuffle = shuffled if c.shuffled_rewards else lambda scores, key, alive_B: scores
    score_candidates = make_score_candidates(graphs, config)

    def of_turn(
        actor: ActorCritic, frozen_models: FrozenModels, normaliser: Normaliser, turn: RolloutBatch, key: jax.Array,
        alive_B: jax.Array | None = None,
    ) -> RolloutBatch:  # fmt: skip
        contexts, replies = turn.contexts, turn.replies
        tokens_CGR, mask_CGR = (
            a.reshape(len(contexts.prompt_CP), -1, a.shape[-1]) for a in (replies.tokens_BR, replies.mask_BR)
        )
        old, value_BR, first = actor_pass(actor, contexts, tokens_CGR, mask_CGR, c.temperature)
        of_sft = graphs.policy, frozen_models.reference, frozen_models.frozen
        reference, _ = policy_pass(*of_sft, contexts, replies, c.temperature)
        exact = config.reward.relevance == "exact"
        say_JBS, end_JBS, by_formula, masks = predict_signals(graphs, frozen_models, contexts, replies, exact)
        given = normaliser, frozen_models.weight_S, config.reward.clip, frozen_models.spread
        scores = score(say_JBS, end_JBS, by_formula, *given)
        scores = shuffle(scores, jax.random.fold_in(key, 1), alive_B)
        read = [jnp.isfinite(read_JBS[..., : len(SIGNALS)]).all((0, 2)) for read_JBS in (say_JBS, end_JBS)]
        return turn._replace(
            old=old, reference=reference, first=first, value_BR=value_BR, masks=masks, scores=scores,
            k1_BR=ppo.kl_k1(old.logp_BR, reference.logp_BR),
            decision_BR=ppo.kl_k1(old.decision_BR, reference.decision_BR),
            finite_B=read[0] & read[1] & ~jnp.isinf(end_JBS).any((0, 2)),
        )  # fmt: skip

    def scored(
        state: TrainState, frozen_models: FrozenModels, normaliser: Normaliser, rollout: Rollout, key: jax.Array
    ) -> Rollout:
        actor = actor_of(graphs, config, frozen_models, state.params)
        begun, *later = rollout.turns
        candidates = score_candidates(actor.policy.layout, frozen_models, normaliser, rollout, key)
        begun = begun if candidates is None else begun._replace(contexts=after(begun.contexts, candidates.empty_C))
        turns = [of_turn(actor, frozen_models, normaliser, begun, key)]
        for turn in later:
            keys_U = turn_keys(later_key(key, config), c.turns)[1]

            def one(given: tuple[RolloutBatch, jax.Array]) -> RolloutBatch:
                return of_turn(actor, frozen_models, normaliser, *given, given[0].alive_B)._replace(first=None)

            turns.append(lax.map(one, (turn, keys_U)))
        return rollout._replace(candidates=candidates, turns=tuple(turns))

    return scored


def make_score_candidates(graphs: Graphs, config: ConfigDict) -> Callable:
    """(layout, frozen models, normaliser, rollout, key) -> its candidates with their rewards, or None; inside jit."""
    c, r = config.ppo, config.reward

    def scored(
        layout: Layout, frozen_models: FrozenModels, normaliser: Normaliser, rollout: Rollout, key: jax.Array
    ) -> Candidates:
        assert rollout.candidates is not None
        candidates, C = rollout.candidates, len(rollout.contexts.prompt_CP)

        def some(given: tuple[Any, jax.Array]) -> tuple[Any, ...]:
            contexts, row_CA = given
            reference = first_of(graphs.policy, frozen_models.reference, frozen_models.frozen, contexts, c.temperature)
            exact = r.relevance == "exact"
            scores = act_scores(graphs, frozen_models, normaliser, contexts, row_CA, layout, exact, r.clip)
            return all_acts.at(reference, row_CA), *scores

        contexts = after(candidates.contexts, rollout.turns[-1].replies.logp_BR)
        found = candidates._replace(contexts=None), lax.map(some, (contexts, candidates.row_CA))
        candidates, (reference, score_CA, empty_C) = jax.tree.map(lambda a: a.reshape(C, *a.shape[2:]), found)
        if c.shuffled_rewards:
            both_CA = jnp.concatenate([score_CA, empty_C[:, None]], 1)
            key = jax.random.split(jax.random.fold_in(key, 1), 3)[1]
            both_CA = jax.random.permutation(key, both_CA.reshape(-1)).reshape(both_CA.shape)
            score_CA, empty_C = both_CA[:, :-1], both_CA[:, -1]
        return candidates._replace(reference=reference, score_CA=score_CA, empty_C=empty_C)

    return scored if c.all_acts else lambda *_: None


def shuffled(scores: Scores, key: jax.Array, alive_B: jax.Array | None) -> Scores:
    """Every reply gets another's scores, of those that were made; a control."""
    if alive_B is None:
        return jax.tree.map(lambda a: jax.random.permutation(key, a), scores)
    order_B = permutation(key, alive_B)
    return jax.tree.map(lambda a: a[order_B], scores)
