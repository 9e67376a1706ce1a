"""Human replies as the sampler would have written them: arrays beside windowed prompts, and their likelihood."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.models.fit import FITS, fits
from crs_jax.models.items import contents
from crs_jax.models.policy import Policy
from crs_jax.models.query import Evidence
from crs_jax.rl.ppo import masked_sum
from crs_jax.rl.scoring import parts, reply_likelihood, tree_hidden
from crs_jax.signals.relevance import context_vectors, named_rows, new_items
from crs_jax.training.task import Task, log_popularity


def reply_arrays(
    task: Task, split: str, where: Sequence[tuple[int, int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, R]` after `<|rec|>` and their mask; a reply longer than R is cut.

    R is `width`, or `config.data.reply_tokens`.
    """
    R = width or task.config.data.reply_tokens
    tokens_BR = np.full((len(where), R), task.tokenizer.pad, np.int32)
    mask_BR = np.zeros((len(where), R), bool)
    for b, (d, t) in enumerate(where):
        reply = task.encoded[split][d][t][2 : 2 + R]
        tokens_BR[b, : len(reply)] = reply
        mask_BR[b, : len(reply)] = True
    return tokens_BR, mask_BR


def whole_replies(task: Task, split: str, where: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """As `reply_arrays`, but whole, however few `config.data.reply_tokens` are: as wide as the longest needs.

    A reply that would reach beyond `config.model.positions` behind a full context is cut there.
    """
    c = task.config
    longest = max((len(task.encoded[split][d][t]) - 2 for d, t in where), default=0)
    width = min(max(longest, c.data.reply_tokens), c.model.positions - c.data.context_tokens)
    return reply_arrays(task, split, where, width)


def evidence_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> tuple[Evidence, np.ndarray]:
    """Evidence of the contexts before the given turns, host arrays; and the named items' embeddings `[B, E]`."""
    dialogues, catalogue = task.dialogues(split), task.corpus.catalogue
    vectors = context_vectors(dialogues, where, catalogue, task.contrast_NE, task.embed, task.config.data.window)
    beside = (*task.together.near(dialogues, where), *task.people.starring(dialogues, where))
    named = named_rows(dialogues, where, catalogue)
    arrays: Any = (vectors["text_BE"], task.facets.asked(dialogues, where), *named, *beside)
    return Evidence(*arrays), vectors["named_BE"]


class Wishes:
    """What all replies of a split are asked for, looked up by dialogue and turn; zero where a reply has no context."""

    def __init__(self, task: Task, split: str):
        where = task.replies(split)
        found, _ = evidence_at(task, split, where)
        blank = [-1 if name in ("named", "near", "starring") else 0 for name in Evidence._fields]
        padded: Any = [np.pad(a, ((1, 0), (0, 0)), constant_values=b) for a, b in zip(found, blank, strict=True)]
        self._evidence: Any = Evidence(*padded)
        longest = max((len(dialogue.turns) for dialogue in task.dialogues(split)), default=0)
        self._row_DT = np.zeros((len(task.dialogues(split)), longest), np.int32)
        act_BM = np.full((len(where) + 1, task.config.data.act_items), -1, np.int32)
        for row, (d, t) in enumerate(where, 1):
            self._row_DT[d, t] = row
            items = task.corpus.catalogue.rows(task.dialogues(split)[d].turns[t].distinct_items)[: act_BM.shape[1]]
            act_BM[row, : len(items)] = items
        self._genres = len(task.facets.genres)
        self._content_NW = jnp.asarray(contents(task.content_NE, task.facets.item_NF, log_popularity(task)))
        self._features = self._fits(self._evidence, act_BM)

    def at(self, dialogue: np.ndarray, turn: np.ndarray) -> Evidence:
        """Evidence, host arrays, of the replies at the given dialogues and turns."""
        row = self._row_DT[dialogue, turn]
        return Evidence(*(a[row] for a in self._evidence))

    def features(self, dialogue: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """`fits` `[..., len(FITS)]` of what the humans newly proposed there."""
        return self._features[self._row_DT[dialogue, turn]]

    def fits(self, dialogue: np.ndarray, turn: np.ndarray, act_BM: np.ndarray) -> np.ndarray:
        """`fits` `[B, len(FITS)]` of other acts `[B, M]` there."""
        return self._fits(self.at(dialogue, turn), act_BM)

    def _fits(self, evidence: Evidence, act_BM: np.ndarray) -> np.ndarray:
        out = np.zeros((len(act_BM), len(FITS)), np.float32)
        for start in range(0, len(act_BM), 1024):  # bounds the gather of the items named
            some = slice(start, start + 1024)
            here, act = jax.tree.map(lambda a, some=some: jnp.asarray(a[some]), (evidence, act_BM))
            out[some] = _fits_of(here, act, self._content_NW, self._genres)
        return out


@functools.partial(jax.jit, static_argnames="genres")
def _fits_of(evidence: Evidence, act_BM: jax.Array, content_NW: jax.Array, genres: int) -> jax.Array:
    return fits(evidence, new_items(act_BM, evidence.named), content_NW, genres)


def reply_nll(
    graphdef: Any,
    params: Any,
    frozen: Any,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    tokens_BR: jax.Array,
    mask_BR: jax.Array,
    *evidence: jax.Array,
) -> dict[str, jax.Array]:
    """Summed negative log-likelihoods (nats) of replies given windowed prompts, with what to divide them by.

    `evidence` are the arrays of `Evidence`, a row a reply.

    `text_nll` is of the words alone that are bytes of text: neither titles nor `<|end|>`.
    Also `hits`: acts whose first item stands among the first ten of the ranking at `<|rec|>`, of `recommending` acts.
    """
    policy: Policy = nnx.merge(graphdef, params, frozen)
    tables = policy.tables()
    hidden = tree_hidden(policy, tables, prompt_BP, prompt_mask_BP, tokens_BR[:, None], mask_BR[:, None])
    before_BRD = hidden.before[:, 0]
    wish = policy.wish(Evidence(*evidence))
    logp_BR = reply_likelihood(policy, tables, before_BRD, tokens_BR, mask_BR, wish=wish).logp_BR
    split = parts(tokens_BR, mask_BR, policy.layout)
    first_B = split.items_BM[:, 0]
    logits_BN = policy.item_logits(policy.acting(before_BRD[:, 0], wish), tables, wish.beside)
    target_B1 = jnp.take_along_axis(logits_BN, jnp.maximum(first_B, 0)[:, None], -1)
    recommending_B = first_B >= 0
    return {
        "act_nll": -masked_sum(logp_BR, split.act_BR),
        "act_tokens": split.act_BR.sum(),
        "word_nll": -masked_sum(logp_BR, split.word_BR),
        "word_tokens": split.word_BR.sum(),
        "text_nll": -masked_sum(logp_BR, split.word_BR & (tokens_BR < policy.layout.num_words)),
        "hits": ((logits_BN >= target_B1).sum(-1) <= 10).sum(where=recommending_B),
        "recommending": recommending_B.sum(),
    }
