"""Episodes of several turns: after a reply a seeker answers, and the next reply is sampled in the grown context.

Everything runs inside the compiled iteration, the later turns as a `lax.scan`. A later reply has a context of its own,
so a group's replies there are no alternatives to one another. An episode ends with its last turn, or where the seeker
leaves, and earns nothing after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from crs_jax.rl import ppo
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.sampling import Replies
from crs_jax.rl.turns import gae_over_turns
from crs_jax.training.batch import RolloutBatch
from crs_jax.training.episodes import Answer, Continuation


def silenced(replies: Replies, alive_B: jax.Array, pad: int) -> Replies:
    """Nothing is said where nobody listens."""
    alive_B1 = alive_B[:, None]
    tokens_BR = jnp.where(alive_B1, replies.tokens_BR, pad)
    return Replies(tokens_BR, replies.mask_BR & alive_B1, jnp.where(alive_B1, replies.logp_BR, 0.0))


def go_on(
    continuation: Continuation,
    reply: Callable[[Contexts, jax.Array, jax.Array], RolloutBatch],
    seeking: tuple[Any, jax.Array],
    first: RolloutBatch,
    turns: int,
    key: jax.Array,
    frozen: Any,
) -> tuple[RolloutBatch, Answer]:
    """The turns after the first, inside jit.

    Args:
      talk: who answers, and what a context is then.
      reply: (contexts, key, who still talks) -> B replies, one to each of B contexts.
      seeking: the seeker's parameters, and (dialogue, turn) `[C, 2]` of the first contexts.
      first: the first turn.
      turns: of an episode, the first included.
      key: of these turns.
      frozen: the seeker's frozen arrays.

    Returns:
      Replies of all later turns, a leading axis of turns - 1 before their B rows, each with its own context; and the
      answers before them, all padding where the seeker had left.
    """
    params, where_C2 = seeking
    (B, R), pad = first.replies.tokens_BR.shape, continuation.episodes.tokenizer.pad
    said_BUR = jnp.full((B, 2 * turns - 1, R), pad, jnp.int32).at[:, 0].set(first.replies.tokens_BR)

    def turn(carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array, jax.Array]):
        (said_BUR, alive_B), (number, seeker_key, reply_key) = carry, now
        answer = continuation.seeker(params, frozen, where_C2, said_BUR, number, seeker_key)
        heard = Answer(jnp.where(alive_B[:, None], answer.tokens_BR, pad), answer.gone_B & alive_B)
        alive_B = alive_B & ~answer.gone_B
        said_BUR = said_BUR.at[:, 2 * number - 1].set(heard.tokens_BR)
        replied = reply(continuation.grown(first.contexts, where_C2, said_BUR), reply_key, alive_B)
        said_BUR = said_BUR.at[:, 2 * number].set(replied.replies.tokens_BR)
        return (said_BUR, alive_B), (replied, heard)

    _, found = lax.scan(turn, (said_BUR, jnp.ones(B, bool)), (jnp.arange(1, turns), *turn_keys(key, turns)))
    return found


def turn_keys(key: jax.Array, turns: int) -> tuple[jax.Array, jax.Array]:
    """Of each turn after the first: the seeker's key and the reply's, `[turns - 1]`."""
    both_U2 = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number)))(jnp.arange(1, turns))
    return both_U2[:, 0], both_U2[:, 1]


def as_rows(later: Any) -> Any:
    """Later turns as rows, turn by turn, without their axis."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), later)


def joined(turns: Sequence[RolloutBatch]) -> RolloutBatch:
    """All replies in one list, the first turn's before the later ones'; what nobody said has no score.

    Contexts and their first tokens, which turns have different numbers of, are those of the first turn.
    """
    first, *later = turns
    if not later:
        return first
    nothing: Any = None
    rows = [turn._replace(contexts=nothing, first=None) for turn in (first, *later)]
    batch: RolloutBatch = jax.tree.map(lambda *a: jnp.concatenate(a), *rows)
    signal_BS = jnp.where(batch.alive_B[:, None], batch.scores.signal_BS, jnp.nan)
    scores = batch.scores._replace(signal_BS=signal_BS)
    return batch._replace(contexts=first.contexts, first=first.first, scores=scores)


def summed(loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]], params: Any, fixed: Any, parts: Any, *counts):
    """Loss and metrics of the first turn and, where there are any, of the later ones, whose rows all have a context of
    their own: sums, and the larger `ratio_error`.
    """
    total, metrics = loss(params, fixed, parts[0], *counts)
    for part in parts[1:]:
        more, others = loss(params, fixed, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), part), *counts)
        worst = jnp.maximum(metrics["ratio_error"], others["ratio_error"])
        total, metrics = total + more, {**jax.tree.map(jnp.add, metrics, others), "ratio_error": worst}
    return total, metrics


def advantages(batch: RolloutBatch, c: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns of all replies' tokens, over all turns of an episode; `c` is `config.ppo`."""
    three = batch.reward_BR, batch.value_BR, batch.replies.mask_BR
    if c.turns == 1:
        return ppo.gae(*three, c.discount, c.gae_lambda)
    R = batch.reward_BR.shape[1]
    reward_UBR, value_UBR, mask_UBR = (a.reshape(c.turns, -1, R) for a in three)
    found = gae_over_turns(reward_UBR, value_UBR, mask_UBR, c.discount, c.gae_lambda, c.turn_discount)
    return found[0].reshape(-1, R), found[1].reshape(-1, R)


def by_episode(later: Any, turns: int, contexts: int) -> Any:
    """Rows of later turns, turn by turn and C x G in each, as `[C, (turns - 1) x G, ...]`: with a first context go all
    rows of the episodes that began there.
    """

    def regroup(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a.reshape(turns - 1, contexts, -1, *a.shape[1:]), 0, 1)
        return a.reshape(contexts, -1, *a.shape[3:])

    return jax.tree.map(regroup, later)


def by_turn(batch: RolloutBatch, turns: int, answers: Answer, pad: int) -> dict[str, jax.Array]:
    """Metrics of each turn's replies (`turn/1/reward`, their length in tokens, and the share of episodes that got so
    far), and of seekers: the share of episodes that they ended, and tokens of an answer.
    """
    out = {}
    mask_UBR, alive_UB = (a.reshape(turns, -1, *a.shape[1:]) for a in (batch.replies.mask_BR, batch.alive_B))
    score_UB = batch.scores.total_B.reshape(turns, -1)
    for u in range(turns):
        out[f"turn/{u + 1}/reward"] = ppo.masked_mean(score_UB[u], alive_UB[u])
        out[f"turn/{u + 1}/length"] = ppo.masked_mean(mask_UBR[u].sum(-1), alive_UB[u])
        out[f"turn/{u + 1}/share"] = alive_UB[u].mean()
    spoken_BR = answers.tokens_BR != pad
    out["seeker/ended"] = 1.0 - alive_UB[-1].mean()
    out["seeker/length"] = ppo.masked_mean(spoken_BR.sum(-1), spoken_BR.any(-1))
    return out
