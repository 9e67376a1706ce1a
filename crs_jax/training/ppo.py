"""The PPO stage's iteration: rollout, score, advantages, update, as one jitted program over the mesh.

Everything with parameters is an argument: the state (donated), the reference, the reward model and the batch of
contexts. What algorithm, several turns, rewards of one's own and sums over first tokens change is chosen when the
iteration is built. First tokens are learnt from more contexts than are replied to.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import FrozenModels, Graphs, predict_signals
from crs_jax.rl.reward import Normaliser, mean_of, with_formulas
from crs_jax.rl.sampling import sample
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.sharding import on_mesh
from crs_jax.training.advantages import Coefficients, make_advantages
from crs_jax.training.episodes import Continuation
from crs_jax.training.ppo_metrics import measured
from crs_jax.training.rollout import actor_of, make_rollout
from crs_jax.training.score import make_score
from crs_jax.training.state import TrainState, keep_layout
from crs_jax.training.update import make_update


def make_reference_signals(graphs: Graphs, config: ConfigDict, mesh: Mesh):
    """Jitted (frozen models, contexts, key) -> signals `[B, S]` of replies that the SFT policy samples."""
    c = config.ppo

    def signals(frozen_models: FrozenModels, contexts: Contexts, key: jax.Array) -> jax.Array:
        policy = nnx.merge(graphs.policy, frozen_models.reference, frozen_models.frozen)
        replies = sample(
            policy, contexts.prompt_CP, contexts.mask_CP, key, group=c.group, reply_tokens=config.data.reply_tokens,
            features=contexts.features, temperature=c.temperature, block=c.decode_block,
        )  # fmt: skip
        _, end_JBS, by_formula, _ = predict_signals(
            graphs, frozen_models, contexts, replies, config.reward.relevance == "exact"
        )
        return mean_of(with_formulas(end_JBS, by_formula))

    return jax.jit(on_mesh(signals, mesh))


def first_extra(act_kl: float, decision_kl: float, word_kl: float) -> dict[str, jax.Array]:
    """What an iteration adapts, at its first values: KL coefficients, and the pace, which multiplies the rate."""
    first = {"act_kl": act_kl, "decision_kl": decision_kl, "word_kl": word_kl, "pace": 1.0}
    return {name: jnp.float32(value) for name, value in first.items()}


def make_iteration(
    graphs: Graphs, optimizer: Any, config: ConfigDict, mesh: Mesh, continuation: Continuation | None = None
):
    """Jitted (state, frozen models, normaliser, contexts, key) -> (state, metrics): one PPO iteration.

    Args:
      graphs: graph definitions.
      optimizer: of the actor-critic's parameters.
      config: the whole config; read when tracing.
      mesh: contexts are cut along its data and fsdp axes.
      talk: what goes on after a reply, where there are several turns; the function then takes, besides, the parameters
        of the seeker and the (dialogue, turn) `[C, 2]` of the contexts.

    `config.ppo.contexts` of the contexts, evenly apart, are replied to; without candidates for first items
    (`config.ppo.all_acts` 0) that is all of them. With the key of the run, iteration i draws from `fold_in(key, i)`.
    """
    algorithm, beyond = ALGORITHMS[config.algorithm], continuation is not None or graphs.own is not None
    rollout = make_rollout(graphs, config, mesh, algorithm, continuation)
    score = make_score(graphs, config)
    advantages = make_advantages(config, algorithm, beyond)
    update = make_update(graphs, optimizer, config, mesh, algorithm)

    def iteration(
        state: TrainState,
        frozen_models: FrozenModels,
        normaliser: Normaliser,
        contexts: Contexts,
        key: jax.Array,
        *seeking: Any,
    ):
        sample_key, order_key = jax.random.split(jax.random.fold_in(key, state.step))
        kl = Coefficients(*(state.extra[f"{part}_kl"] for part in Coefficients._fields))

        sampled = rollout(state, frozen_models, contexts, sample_key, *seeking)
        scored = score(state, frozen_models, normaliser, sampled, sample_key)
        batch = advantages(scored, kl, sample_key)
        new_state, metrics = update(state, frozen_models, batch, order_key)

        actor = actor_of(graphs, config, frozen_models, state.params)
        metrics |= measured(batch, actor, frozen_models, sampled.answers, algorithm, config)
        metrics |= {"coefficient/act_kl": kl.act, "coefficient/word_kl": kl.word}
        metrics["noise"] = jax.random.key_data(sample_key).astype(jnp.uint32).sum()
        return keep_layout(new_state, mesh), metrics

    return CompiledOnce("ppo iteration", iteration, mesh, donate=0)
