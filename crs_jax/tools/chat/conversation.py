"""A talk with one policy or two: what was said, and what is said next."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping

from crs_jax.data.dialogue import SEEKER, Turn
from crs_jax.runtime.arguments import MOST_SEED
from crs_jax.runtime.errors import InputError
from crs_jax.tools.api.proposals import Reply, Score
from crs_jax.tools.api.run import Run
from crs_jax.tools.chat.feedback import FeedbackWriter


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply of one policy.

    Attributes:
      reply: what it says.
      score: what the reward model foretells of it; None where the run has none.
      seconds: that both took.
    """

    reply: Reply
    score: Score | None
    seconds: float


@dataclasses.dataclass
class Conversation:
    """One person's talk; each policy goes on from its own replies.

    Attributes:
      user: what the person said, in order.
      words: the same as a person reads it.
      heard: when the last of it came, in seconds since 1970.
      answers: by model, to each of these; one less while a reply is awaited.
      agreed: whether the person agreed that it is kept, where there is a log.
      logged_as: id in the log once something of it is there.
    """

    user: list[Turn] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    heard: float = 0.0
    answers: dict[str, list[Answer]] = dataclasses.field(default_factory=dict)
    agreed: bool = False
    logged_as: str = ""

    def turns(self, model: str) -> list[Turn]:
        """The dialogue so far as that policy knows it."""
        out: list[Turn] = []
        for number, said in enumerate(self.user):
            out.append(said)
            out += [answer.reply.turn for answer in self.answers.get(model, [])[number : number + 1]]
        return out


class Talker:
    """What answers.

    Args:
      runs: by model.
      top: items shown beside a reply.
      seed: of the sampling; every reply of a talk has its own.
      log: where words and times of talks go that people agreed to have kept; None: nowhere.
    """

    def __init__(self, runs: Mapping[str, Run], top: int = 5, seed: int = 0, log: FeedbackWriter | None = None) -> None:
        if log is not None and len(runs) > 1:
            raise InputError("--log: a reaction to two replies is a label of neither; take --model=ppo or --model=sft")
        self.runs, self.top, self.seed, self.log = dict(runs), top, seed, log

    @property
    def first(self) -> Run:
        """Any of the runs, for what they share."""
        return next(iter(self.runs.values()))

    def _seed(self, number: int) -> int:
        """Of the reply to a message; another for every seed, since the factor is odd."""
        return (self.seed * 1_000_003 + number) % (MOST_SEED + 1)

    def hear(self, talk: Conversation, text: str) -> bool:
        """Takes up what the person says; False where there are no words in it."""
        now = time.time()
        if not text.strip():
            return False
        try:
            said = self.first.message(SEEKER, text)
        except InputError:  # nothing but signs that no text may hold
            return False
        answered = min(len(talk.answers.get(model, [])) for model in self.runs)
        self._cut(talk, answered)  # of a page that was closed while it waited
        talk.user.append(said)
        talk.words.append(said.render(self.first.catalogue.names))
        talk.heard = now
        return True

    def answer(self, talk: Conversation, temperature: float) -> Iterator[tuple[str, Answer]]:
        """The reply of each model in turn, taken up in the talk.

        Until all of them are taken the message is unanswered; left there, it has no trace in the talk or the log.

        Raises:
          InputError: no reply has such a temperature.
          OSError: of the log; the message has no trace then either.
        """
        number, said = len(talk.user), [(talk.user[-1], talk.heard)]
        try:
            for model, run in self.runs.items():
                started, turns = time.monotonic(), talk.turns(model)
                reply = run.reply(turns, temperature, self._seed(number), self.top)
                score = run.score(turns, reply) if run.can_score else None
                found = Answer(reply, score, time.monotonic() - started)
                talk.answers.setdefault(model, []).append(found)
                said.append((reply.turn, time.time()))
                yield model, found
            if self.log is not None and talk.agreed:
                name = talk.logged_as or self.log.new_dialogue()
                self.log.write(name, self.first.model, *said)
                talk.logged_as = name
            number += 1
        finally:
            self._cut(talk, number - 1)

    def _cut(self, talk: Conversation, length: int) -> None:
        """Keeps that many messages, with their answers."""
        del talk.user[length:], talk.words[length:]
        talk.answers = {model: answers[:length] for model, answers in talk.answers.items()}


def signals(score: Score) -> dict[str, float | None]:
    """What is shown of a score, by name."""
    return {**score.signals, "reward": score.reward}


def signed(value: float | None) -> str:
    """A signal as it is shown: `+0.42`, and `-` where there is none."""
    return "-" if value is None else f"{value:+.2f}"
