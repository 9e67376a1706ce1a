"""Episodes of several turns on the host: what was said so far, and the contexts that it makes.

The features of a grown context are read off words, so host functions rebuild them: the very ones that make contexts of
logged dialogues, given the logged turns and the new ones. The sentence encoder runs there too, in NumPy. An act's items
count as named, whether its words name them or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from crs_jax.data.dialogue import SEEKER, Dialogue
from crs_jax.data.windows import context_windows
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import Task
from crs_jax.rl.contexts import Contexts
from crs_jax.runtime.errors import InputError


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
class Continuation:
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
