"""Episodes of several turns: after a reply a seeker answers, and the next reply is sampled in the grown context.

Everything runs inside the compiled iteration, the later turns as a `lax.scan`. What a grown context holds beside its
tokens (vectors of what was said, items named, facets asked for, ...) is read off words, so host functions rebuild it:
the very ones that make contexts of logged dialogues, given the logged turns and the new ones. The sentence encoder runs
there too, in NumPy.

An act's items count as named, whether its words name them or not. A later reply has a context of its own, so a group's
replies there are no alternatives to one another: only the first turn's rewards are taken less their group's mean. An
episode ends with its last turn, or where the seeker leaves, and earns nothing after that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from crs_jax.data.dialogue import SEEKER, Dialogue
from crs_jax.data.windows import context_windows
from crs_jax.models.likelihood import FirstToken
from crs_jax.rl import ppo
from crs_jax.rl.reward import Scores
from crs_jax.rl.rollout import Replies
from crs_jax.rl.scoring import Parts, TokenLikelihood
from crs_jax.rl.turns import gae_over_turns, permutation
from crs_jax.runtime.errors import InputError
from crs_jax.training.contexts import Contexts, contexts_at
from crs_jax.training.task import Task


class Played(NamedTuple):
    """B replies with what the policy, the reference and the judges say of them; leading axis B.

    `alive_B` is False where the seeker had left before; nothing was said there, and all masks are False.
    """

    replies: Replies
    old: TokenLikelihood
    reference: TokenLikelihood
    value_BR: jax.Array
    finite_B: jax.Array
    split: Parts
    scores: Scores
    k1_BR: jax.Array
    kind_BR: jax.Array
    reward_BR: jax.Array
    alive_B: jax.Array


class Replied(NamedTuple):
    """Contexts, the policy's first tokens there, and the B = C x G replies."""

    contexts: Contexts
    first: FirstToken
    played: Played


class Answer(NamedTuple):
    """What seekers say to B replies.

    Attributes:
      tokens_BR: what follows `<|seeker|>`, words to `<|end|>`, then padding.
      gone_B: the seeker leaves; no reply follows.
    """

    tokens_BR: jax.Array
    gone_B: jax.Array


Seeker = Callable[[Any, Any, jax.Array, jax.Array, jax.Array, jax.Array], Answer]
"""(parameters, frozen arrays, where_C2, said_BUR, number of the turn answered, key) -> Answer; inside jit."""


class Episodes:
    """Dialogues that go on otherwise than they were logged, on the host.

    `said_BUR` holds what was said since the logged context, recommender and seeker in turn: tokens after their opening,
    padded; nothing but padding where nothing was said. Episode b starts from the context `where_C2[b // G]`.
    """

    def __init__(self, task: Task, split: str):
        """Embeds what the logged seekers said, and loads what embeds the rest, so that no host function has to."""
        if jax.process_count() > 1:
            raise InputError(
                "--config.ppo.turns: contexts of later turns are made on the host, in one process; use 1 with several"
            )
        config = task.config.copy_and_resolve_references()
        config.data.pipeline = "numpy"  # the same windows, without a process for each
        names = task.corpus.catalogue.names
        said = {turn.render(names) for d in task.dialogues(split) for turn in d.turns if turn.role == SEEKER}
        texts = sorted(said)
        self._known = dict(zip(texts, task.embed(texts), strict=True)) if texts else {}
        self._task = dataclasses.replace(task, config=config, embed=self._embed)
        self._split, self._on_host = split, task.embed_on_host or task.embed
        self._on_host([""])  # loads the encoder, which a host function could not: the device waits for it
        self.tokenizer, self.catalogue = task.tokenizer, task.corpus.catalogue

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._known[t] if t in self._known else self._on_host([t])[0] for t in texts])

    def dialogues(self, where_C2: np.ndarray, said_BUR: np.ndarray) -> tuple[list[Dialogue], list[list[list[int]]]]:
        """The B dialogues so far, as records and as tokens."""
        t, task = self.tokenizer, self._task
        grown, encoded = [], []
        for b, said_UR in enumerate(said_BUR):
            d, at = (int(x) for x in where_C2[b // (len(said_BUR) // len(where_C2))])
            turns, tokens = list(task.dialogues(self._split)[d].turns[:at]), list(task.encoded[self._split][d][:at])
            for u, said_R in enumerate(said_UR):
                body = [int(token) for token in said_R if token != t.pad]
                if not body:
                    break
                opening = [t.seeker] if u % 2 else [t.recommender, t.rec]
                tokens.append([*opening, *body, *([] if body[-1] == t.end else [t.end])])
                turns.append(t.decode_turn(tokens[-1], self.catalogue))
            grown.append(dataclasses.replace(task.dialogues(self._split)[d], turns=tuple(turns)))
            encoded.append(tokens)
        return grown, encoded

    def contexts(self, where_C2: np.ndarray, said_BUR: np.ndarray) -> Contexts:
        """Host arrays of the contexts after all that was said, B rows."""
        grown, encoded = self.dialogues(where_C2, said_BUR)
        part: Any = {self._split: tuple(grown)}
        corpus = dataclasses.replace(self._task.corpus, **part)
        task = dataclasses.replace(self._task, corpus=corpus, encoded={self._split: encoded})
        return contexts_at(task, self._split, [(b, len(dialogue.turns)) for b, dialogue in enumerate(grown)])

    def prompts(self, where_C2: np.ndarray, said_BUR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompts `[B, P]` for the seeker's answer and their masks: windows that end in `<|seeker|>`."""
        _, encoded = self.dialogues(where_C2, said_BUR)
        data, where = self._task.config.data, [(b, len(turns)) for b, turns in enumerate(encoded)]
        windows = context_windows(
            encoded, where, data.window, data.context_tokens, self.tokenizer, (self.tokenizer.seeker,)
        )
        return windows.tokens_BP, windows.mask_BP


@dataclasses.dataclass(frozen=True, eq=False)
class Talk:
    """What goes on after a reply.

    Attributes:
      episodes: rebuild contexts.
      seeker: answers.
    """

    episodes: Episodes
    seeker: Seeker

    def grown(self, like: Contexts, where_C2: jax.Array, said_BUR: jax.Array) -> Contexts:
        """Contexts after all that was said, B rows shaped as those of `like`; inside jit."""

        def host(where_C2: Any, said_BUR: Any) -> Any:
            made = self.episodes.contexts(np.asarray(where_C2), np.asarray(said_BUR))
            return jax.tree.map(lambda a, shape: np.asarray(a, shape.dtype), made, shapes)

        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(said_BUR), *a.shape[1:]), a.dtype), like)
        return jax.pure_callback(host, shapes, where_C2, said_BUR, vmap_method="sequential")


def silenced(replies: Replies, alive_B: jax.Array, pad: int) -> Replies:
    """Nothing is said where nobody listens."""
    alive_B1 = alive_B[:, None]
    tokens_BR = jnp.where(alive_B1, replies.tokens_BR, pad)
    return Replies(tokens_BR, replies.mask_BR & alive_B1, jnp.where(alive_B1, replies.logp_BR, 0.0))


def shuffled(scores: Scores, key: jax.Array, alive_B: jax.Array | None) -> Scores:
    """Every reply gets another's scores, of those that were made."""
    if alive_B is None:
        return jax.tree.map(lambda a: jax.random.permutation(key, a), scores)
    order_B = permutation(key, alive_B)
    return jax.tree.map(lambda a: a[order_B], scores)


def go_on(
    talk: Talk,
    reply: Callable[[Contexts, jax.Array, jax.Array], Replied],
    seeking: tuple[Any, jax.Array],
    first: Replied,
    turns: int,
    key: jax.Array,
    frozen: Any,
) -> tuple[Replied, Answer]:
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
      Replies of all later turns, (turns - 1) x B rows, turn by turn, each with its own context; and the answers before
      them, in the same rows, all padding where the seeker had left.
    """
    params, where_C2 = seeking
    (B, R), pad = first.played.replies.tokens_BR.shape, talk.episodes.tokenizer.pad
    said_BUR = jnp.full((B, 2 * turns - 1, R), pad, jnp.int32).at[:, 0].set(first.played.replies.tokens_BR)

    def turn(carry: tuple[jax.Array, jax.Array], number: jax.Array):
        said_BUR, alive_B = carry
        seeker_key, reply_key = jax.random.split(jax.random.fold_in(key, number))
        answer = talk.seeker(params, frozen, where_C2, said_BUR, number, seeker_key)
        heard = Answer(jnp.where(alive_B[:, None], answer.tokens_BR, pad), answer.gone_B & alive_B)
        alive_B = alive_B & ~answer.gone_B
        said_BUR = said_BUR.at[:, 2 * number - 1].set(heard.tokens_BR)
        replied = reply(talk.grown(first.contexts, where_C2, said_BUR), reply_key, alive_B)
        said_BUR = said_BUR.at[:, 2 * number].set(replied.played.replies.tokens_BR)
        return (said_BUR, alive_B), (replied, heard)

    _, found = lax.scan(turn, (said_BUR, jnp.ones(B, bool)), jnp.arange(1, turns))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)


def joined(turns: Sequence[Replied]) -> Played:
    """All replies in one list, the first turn's before the later ones'; what nobody said has no score."""
    if len(turns) == 1:
        return turns[0].played
    played = jax.tree.map(lambda *a: jnp.concatenate(a), *(turn.played for turn in turns))
    signal_BS = jnp.where(played.alive_B[:, None], played.scores.signal_BS, jnp.nan)
    return played._replace(scores=played.scores._replace(signal_BS=signal_BS))


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


def advantages(played: Played, c: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns of all replies' tokens, over all turns of an episode; `c` is `config.ppo`."""
    three = played.reward_BR, played.value_BR, played.replies.mask_BR
    if c.turns == 1:
        return ppo.gae(*three, c.discount, c.gae_lambda)
    R = played.reward_BR.shape[1]
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


def by_turn(played: Played, turns: int, answers: Answer, pad: int) -> dict[str, jax.Array]:
    """Metrics of each turn's replies (`turn/1/reward`, their length in tokens, and the share of episodes that got so
    far), and of seekers: the share of episodes that they ended, and tokens of an answer.
    """
    out = {}
    mask_UBR, alive_UB = (a.reshape(turns, -1, *a.shape[1:]) for a in (played.replies.mask_BR, played.alive_B))
    score_UB = played.scores.total_B.reshape(turns, -1)
    for u in range(turns):
        out[f"turn/{u + 1}/reward"] = ppo.masked_mean(score_UB[u], alive_UB[u])
        out[f"turn/{u + 1}/length"] = ppo.masked_mean(mask_UBR[u].sum(-1), alive_UB[u])
        out[f"turn/{u + 1}/share"] = alive_UB[u].mean()
    spoken_BR = answers.tokens_BR != pad
    out["seeker/ended"] = 1.0 - alive_UB[-1].mean()
    out["seeker/length"] = ppo.masked_mean(spoken_BR.sum(-1), spoken_BR.any(-1))
    return out
