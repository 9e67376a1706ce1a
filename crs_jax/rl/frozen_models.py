"""What does not learn in PPO: the SFT policy and the reward models; and what these say of replies and of items."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models.layout import Layout
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.reward import Normaliser, members, predict, score
from crs_jax.rl.sampling import Replies
from crs_jax.rl.scoring import TokenMasks
from crs_jax.signals.registry import SIGNALS, column
from crs_jax.signals.relevance import new_items


class FrozenModels(NamedTuple):
    """What does not learn in this stage.

    Attributes:
      reference: parameters of the SFT policy.
      reward: parameters of the reward model, or by number of an ensemble's members (`rl/reward.py`).
      frozen: the item contents of policy-shaped models.
      reward_frozen: those of the reward model.
      items_NE: `Task.contrast_NE`, for signals with a formula.
      weight_S: of each signal, and with a reward of one's own delta.
      spread: standard deviations over members that are taken from their mean.
    """

    reference: Any
    reward: Any
    frozen: Any
    reward_frozen: Any
    items_NE: jax.Array
    weight_S: jax.Array
    spread: jax.Array | float = 0.0


Model = tuple[Any, Any, Any]  # graphdef, params, frozen


class Graphs(NamedTuple):
    """Graph definitions (static) of the models, and a user's own reward (`training/own_reward.py`).

    `learned` is that of the policy that learns, where it reads more evidence than the reference; else None.
    """

    actor: Any
    policy: Any
    reward: Any
    own: Any = None
    learned: Any = None

    @property
    def aligned(self) -> Any:
        """Of the policy that learns."""
        return self.policy if self.learned is None else self.learned


class Aligned(NamedTuple):
    """What the PPO stage leaves.

    Attributes:
      policy: the aligned policy.
      graphs, frozen_models, normaliser: what scores replies as in training.
    """

    policy: Model
    graphs: Graphs
    frozen_models: FrozenModels
    normaliser: Normaliser


def predict_signals(
    graphs: Graphs, frozen_models: FrozenModels, contexts: Contexts, replies: Replies, exact: bool
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], TokenMasks]:
    """What the reward models say of replies; inside jit.

    Args:
      exact: signals with a formula are computed by it, else by their heads wherever the formula has a value.

    Returns:
      Predicted signals at `<|say|>` and at the end by each reward model, `[J, B, S]`. With a reward of one's own it
      stands behind them, NaN at `<|say|>`, the same for all members. Then, by name, signals with a formula, `[B]`
      where they are exact, else `[J, B]`, for `with_formulas`; and the replies' token masks.
    """
    C = contexts.prompt_CP.shape[0]
    tokens, mask = (a.reshape(C, -1, a.shape[-1]) for a in (replies.tokens_BR, replies.mask_BR))
    models = [nnx.merge(graphs.reward, params, frozen_models.reward_frozen) for params in members(frozen_models.reward)]
    prompts = contexts.prompt_CP, contexts.mask_CP
    reads = [predict(model, *prompts, tokens, mask, contexts.features) for model in models]
    say_JBS, end_JBS = jnp.stack([say_BS for say_BS, _, _ in reads]), jnp.stack([end_BS for _, end_BS, _ in reads])
    masks = reads[0][2]
    G = replies.tokens_BR.shape[0] // C
    features = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), contexts.features)
    new_BM = new_items(masks.items_BM, features.named)
    formulas = {name: signal.score for name, signal in SIGNALS.items() if signal.score is not None}
    by_formula = {name: score_of(features, new_BM, frozen_models.items_NE) for name, score_of in formulas.items()}
    if not exact:
        by_formula = {
            name: jnp.where(jnp.isfinite(value_B), end_JBS[..., column(name)], jnp.nan)
            for name, value_B in by_formula.items()
        }
    if graphs.own is not None:
        own_B = graphs.own(contexts, replies, masks)
        both = ((say_JBS, jnp.full_like(own_B, jnp.nan)), (end_JBS, own_B))
        say_JBS, end_JBS = (
            jnp.concatenate([read, jnp.broadcast_to(own[:, None], (*read.shape[:2], 1))], -1) for read, own in both
        )
    return say_JBS, end_JBS, by_formula, masks


def act_scores(
    graphs: Graphs,
    frozen_models: FrozenModels,
    normaliser: Normaliser,
    contexts: Contexts,
    row_CA: jax.Array,
    layout: Layout,
    exact: bool,
    clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Rewards at `<|say|>` of acts with one item each, `[C, A]`, and of the act without any, `[C]`."""
    C, A = row_CA.shape
    first_CA = jnp.concatenate([layout.item_offset + row_CA, jnp.full((C, 1), layout.say)], 1)
    second_CA = jnp.concatenate([jnp.full((C, A), layout.say), jnp.full((C, 1), layout.pad)], 1)
    tokens_BR = jnp.stack([first_CA, second_CA], -1).reshape(-1, 2).astype(jnp.int32)
    mask_BR = jnp.stack([jnp.ones_like(first_CA, bool), second_CA == layout.say], -1).reshape(-1, 2)
    replies = Replies(tokens_BR, mask_BR, jnp.zeros(tokens_BR.shape))
    model_only = graphs._replace(own=None)  # of an act alone a reward of one's own says nothing
    say_JBS, _, by_formula, _ = predict_signals(model_only, frozen_models, contexts, replies, exact)
    if graphs.own is not None:
        say_JBS = jnp.pad(say_JBS, ((0, 0), (0, 0), (0, 1)), constant_values=jnp.nan)
    scores = score(say_JBS, say_JBS, by_formula, normaliser, frozen_models.weight_S, clip, frozen_models.spread)
    score_CA = scores.act_B.reshape(C, A + 1)
    return score_CA[:, :-1], score_CA[:, -1]
