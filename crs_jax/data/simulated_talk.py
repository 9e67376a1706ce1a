"""One simulated conversation: a seeker with a hidden taste and a recommender who listens only part of the time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np

from crs_jax.data import simulated_words as words
from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.data.simulated_world import Seeker, World, pick

MIN_MESSAGES, MAX_MESSAGES = 6, 12
SECONDS_READ, SECONDS_TYPED = 0.25, 0.5  # a word


@dataclasses.dataclass(frozen=True)
class Recommender:
    """How one recommender works.

    Attributes:
      listens: chance that a proposal follows what the seeker said; else a popular or a random item is proposed.
      warm: chance that a proposal says why it fits.
    """

    listens: float
    warm: float


@dataclasses.dataclass(frozen=True)
class Message:
    """One message in ReDial's form: items as `@id`, whole seconds since the first message."""

    role: str
    text: str
    seconds: int


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What the recommender's last message was, for the seeker to react to.

    Attributes:
      kind: the need that it asks for; empty for a proposal.
      fit: of a proposal: mean true utility of its items, and how it was put.
      rows: its items.
    """

    kind: str
    fit: float = 0.0
    rows: tuple[int, ...] = ()


class Conversation:
    """Plays one conversation.

    Attributes:
      messages: what was said, afterwards.
      suggested: 0 or 1 for each item row named, by the seeker or by the recommender.
      moods: of the seeker, by the place of the proposal they react to.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        world: World,
        seeker: Seeker,
        recommender: Recommender,
        watch: Callable[[Conversation, Spoken], None] | None = None,
    ) -> None:
        """`watch` is shown the conversation before each reaction to what the recommender said."""
        self.rng, self.world, self.seeker, self.recommender = rng, world, seeker, recommender
        self.messages: list[Message] = []
        self.suggested: dict[int, int] = {}
        self.moods: dict[int, float] = {}
        self._unsaid = list(seeker.needs)
        self._said: list[tuple[str, int]] = []
        self._clock = 0.0
        self._watch = watch
        self._play()

    def retold(self, rng: np.random.Generator, last: Spoken) -> Conversation:
        """The same conversation up to the recommender's last message, with another reaction and what follows it."""
        other = copy.copy(self)
        other.messages, other.suggested, other.moods = list(self.messages), dict(self.suggested), dict(self.moods)
        other._unsaid, other._said = list(self._unsaid), list(self._said)
        other.rng, other._watch = rng, None
        other._go_on(last)
        return other

    def _play(self) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self._send(RECOMMENDER, [pick(rng, words.OPENERS)], 0.0)
        first = [pick(rng, words.GREETINGS)] if rng.random() < 0.8 else []
        self._reply([*first, self._need("genre" if rng.random() < 0.75 else "item")], 0.4)
        if rng.random() < 0.3:
            self._reply([self._need()], 0.4)
        self._go_on(self._ask() if rng.random() < 0.6 else self._propose())

    def _go_on(self, last: Spoken) -> None:
        """Reactions, questions and proposals from the recommender's last message to the end."""
        rng = self.rng
        while True:
            if self._watch is not None:
                self._watch(self, last)
            goes_on = self._answer(last.kind) if last.kind else self._react(last)
            if not goes_on or len(self.messages) >= MAX_MESSAGES - 2:
                break
            last = self._ask() if rng.random() < (0.25 if last.kind else 0.35) else self._propose()
        if self.messages[-1].role == SEEKER and rng.random() < 0.7:
            self._send(RECOMMENDER, [pick(rng, words.CLOSINGS)], 2.0)

    def _ask(self) -> Spoken:
        """The recommender asks for a need of some kind."""
        kind = pick(self.rng, tuple(words.QUESTIONS))
        self._send(RECOMMENDER, [pick(self.rng, words.QUESTIONS[kind])], thinking(self.rng))
        return Spoken(kind)

    def _answer(self, kind: str) -> bool:
        """The seeker answers a question: short, neither pleased nor displeased, and never leaves."""
        self._reply([self._need(kind)], 0.4)
        return True

    def _propose(self) -> Spoken:
        """One proposal."""
        rng, world = self.rng, self.world
        if rng.random() < 0.06:
            self._send(RECOMMENDER, [pick(rng, words.PAUSES)], 1.0)
        rows = self._choose(2 if rng.random() < 0.2 else 1)
        warm = rng.random() < self.recommender.warm
        genre = dict(self._said).get("genre")
        shown = world.genre_NG[rows[0]].argmax() if genre is None or not world.genre_NG[rows[0], genre] else genre
        slots = {
            "genre": pick(rng, words.GENRES[shown].asks),
            "person": pick(rng, tuple(world.people(rows[0]))),
            "decade": words.DECADES[int(world.years[rows[0]]) // 10 * 10],
        }
        pitch = [pick(rng, words.WARM if warm else words.CURT).format(item=self._at(rows[0]), **slots)]
        pitch += [pick(rng, words.SECOND).format(item=self._at(row)) for row in rows[1:]]
        self._send(RECOMMENDER, pitch, thinking(rng))
        for row in rows:
            self.suggested.setdefault(row, 1)
        fit = float(self.seeker.utility_N[rows].mean()) + (0.05 if warm else -0.03)
        return Spoken("", fit, tuple(rows))

    def _choose(self, count: int) -> list[int]:
        """Rows to propose, never one named before: by the needs said, by fame, or at random."""
        rng, world = self.rng, self.world
        if rng.random() < self.recommender.listens:
            score_N = rng.gumbel(0.0, 0.5, len(world))
            for kind, value in self._said:
                if kind == "genre":
                    score_N = score_N + 2.0 * (world.genre_NG[:, value] > 0)
                elif kind == "person":
                    score_N = score_N + 1.5 * world.person_NF[:, value]
                elif kind == "decade":
                    score_N = score_N + 0.7 * (world.years // 10 * 10 == value)
                else:
                    score_N = score_N + 1.2 * (world.genre_NG @ world.genre_NG[value])
        elif rng.random() < 0.6:
            score_N = np.log(world.popularity_N) + rng.gumbel(0.0, 1.0, len(world))
        else:
            score_N = rng.gumbel(0.0, 1.0, len(world))
        score_N[list(self.suggested)] = -np.inf
        return [int(row) for row in np.argsort(-score_N)[:count]]

    def _react(self, last: Spoken) -> bool:
        """The seeker's reaction: the better the fit, the longer, warmer and slower (they look at it), with noise.

        False where the seeker leaves.
        """
        rng, fit = self.rng, last.fit
        item = self._at(last.rows[int(rng.integers(len(last.rows)))])
        if len(self.messages) >= MIN_MESSAGES - 1 and rng.random() < 0.12 * (1.0 - fit):
            return False  # leaves without a word
        mood = fit + self.seeker.cheer + rng.normal(0.0, 0.17)
        self.moods[len(self.messages) - 1] = mood
        level = int(np.clip(np.floor(5.0 * mood), 0, 4))
        said = [pick(rng, words.REACTIONS[level]).format(item=item)]
        taken = rng.random() < 1.0 / (1.0 + np.exp(-7.5 * (fit - 0.65)))
        if taken:
            said.append(pick(rng, words.TAKEN_UP).format(item=item))
        if level >= 3 and rng.random() < 0.5 * level - 1.2:
            said.append(pick(rng, words.PRAISE))
        leaves = len(self.messages) >= MIN_MESSAGES - 2 and rng.random() < 0.06 + 0.6 * (1.0 - fit) ** 2
        if leaves:
            said.append(pick(rng, words.FAREWELLS[0 if level < 2 else 1 if level < 4 else 2]))
        elif rng.random() < 0.5:
            said.append(self._need())
        elif level >= 2 and rng.random() < 0.5:
            said.append(pick(rng, words.MORE))
        self._reply(said, fit)
        return not leaves

    def _need(self, kind: str | None = None) -> str:
        """The next need of the kind asked for, else the next of any kind; remembered by the recommender."""
        left = [need for need in self._unsaid if kind in (None, need[0])] or self._unsaid
        if not left:
            return pick(self.rng, words.NOTHING_MORE)
        need = left[0]
        self._unsaid.remove(need)
        self._said.append(need)
        kind, value = need
        if kind == "genre":
            slot = pick(self.rng, words.GENRES[value].asks)
        elif kind == "person":
            slot = self.world.persons[value]
        elif kind == "decade":
            slot = words.DECADES[value]
        else:
            slot = self._at(value)
            self.suggested.setdefault(value, 0)
        return pick(self.rng, words.NEEDS[kind]).format(**{kind: slot})

    def _reply(self, sentences: list[str], fit: float) -> None:
        """The seeker's message, or two; latency is reading, typing and dwell, and dwell grows with the fit."""
        rng = self.rng
        read = len(self.messages[-1].text.split()) if self.messages else 0
        pieces = [sentences[:1], sentences[1:]] if len(sentences) > 1 and rng.random() < 0.12 else [sentences]
        dwell = float(np.exp(0.9 + 1.8 * fit + rng.normal(0.0, 0.6))) * self.seeker.pace
        self._send(SEEKER, pieces[0], SECONDS_READ * read + dwell)
        for piece in pieces[1:]:
            self._send(SEEKER, piece, 1.0)

    def _send(self, role: str, sentences: list[str], wait: float) -> None:
        text = " ".join(sentences)
        if self.messages:
            self._clock += wait + SECONDS_TYPED * len(text.split())
        self.messages.append(Message(role, text, int(self._clock)))

    def _at(self, row: int) -> str:
        return f"@{self.world.ids[row]}"


def thinking(rng: np.random.Generator) -> float:
    """Seconds a recommender takes to come up with something; says nothing of the seeker."""
    return float(np.exp(2.0 + rng.normal(0.0, 0.6)))
