"""What judges replies in PPO and after it: reference, reward model, and the scores of replies and of acts alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.models.heads import SIGNALS
from crs_jax.models.policy import Layout
from crs_jax.rl.reward import Normaliser, predict, score
from crs_jax.rl.rollout import Replies
from crs_jax.rl.scoring import Parts
from crs_jax.signals.relevance import new_items, relevance
from crs_jax.training.contexts import Contexts


class Judges(NamedTuple):
    """What does not learn in this stage.

    Attributes:
      reference: parameters of the SFT policy.
      reward: parameters of the reward model.
      frozen: the item contents of policy-shaped models.
      reward_frozen: those of the reward model.
      items_NE: `Task.contrast_NE`, for exact relevance.
      weight_S: alpha, beta, gamma, and with a reward of one's own delta.
    """

    reference: Any
    reward: Any
    frozen: Any
    reward_frozen: Any
    items_NE: jax.Array
    weight_S: jax.Array


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


def judge(
    graphs: Graphs, judges: Judges, contexts: Contexts, replies: Replies, exact: bool
) -> tuple[jax.Array, jax.Array, jax.Array, Parts]:
    """Predicted signals at `<|say|>` and at the end, the relevance (exact, or the head's), the replies' parts.

    Relevance is NaN for acts that propose nothing new: there is none. With a reward of one's own it stands behind the
    signals, NaN at `<|say|>`.
    """
    C = contexts.prompt_CP.shape[0]
    model = nnx.merge(graphs.reward, judges.reward, judges.reward_frozen)
    tokens, mask = (a.reshape(C, -1, a.shape[-1]) for a in (replies.tokens_BR, replies.mask_BR))
    say_BS, end_BS, split = predict(model, contexts.prompt_CP, contexts.mask_CP, tokens, mask, contexts.evidence)
    G = replies.tokens_BR.shape[0] // C
    wishes = (contexts.text_CE, contexts.named_CE, contexts.named_CX)
    text_BE, named_BE, named_BX = (jnp.repeat(a, G, axis=0) for a in wishes)
    new_BM = new_items(split.items_BM, named_BX)
    if graphs.own is not None:
        own_B = graphs.own(contexts, replies, split)
        both = ((say_BS, jnp.full_like(own_B, jnp.nan)), (end_BS, own_B))
        say_BS, end_BS = (jnp.concatenate([read, own[:, None]], 1) for read, own in both)
    if exact:
        return say_BS, end_BS, relevance(new_BM, text_BE, named_BE, judges.items_NE), split
    learned_B = end_BS[:, SIGNALS.index("relevance")]
    return say_BS, end_BS, jnp.where((new_BM >= 0).any(-1), learned_B, jnp.nan), split


def act_scores(
    graphs: Graphs,
    judges: Judges,
    normaliser: Normaliser,
    contexts: Contexts,
    row_CA: jax.Array,
    layout: Layout,
    exact: bool,
    clip: float,
) -> jax.Array:
    """Rewards `[C, A]` at `<|say|>` of acts with one item each; the row N is the act without any."""
    empty_CA = row_CA == layout.num_items
    first_CA = jnp.where(empty_CA, layout.say, layout.item_offset + row_CA)
    second_CA = jnp.where(empty_CA, layout.pad, layout.say)
    tokens_BR = jnp.stack([first_CA, second_CA], -1).reshape(-1, 2).astype(jnp.int32)
    mask_BR = jnp.stack([jnp.ones_like(empty_CA), ~empty_CA], -1).reshape(-1, 2)
    replies = Replies(tokens_BR, mask_BR, jnp.zeros(tokens_BR.shape))
    model_only = graphs._replace(own=None)  # of an act alone a reward of one's own says nothing
    say_BS, _, relevance_B, _ = judge(model_only, judges, contexts, replies, exact)
    if graphs.own is not None:
        say_BS = jnp.pad(say_BS, ((0, 0), (0, 1)), constant_values=jnp.nan)
    return score(say_BS, say_BS, relevance_B, normaliser, judges.weight_S, clip).act_B.reshape(row_CA.shape)
