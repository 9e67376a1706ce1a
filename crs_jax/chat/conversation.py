"""A talk with one policy or two: what was said, and what is said next."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping

from crs_jax.api import Run
from crs_jax.arguments import MOST_SEED
from crs_jax.chat.feedback import FeedbackWriter
from crs_jax.data.dialogue import SEEKER, Turn
from crs_jax.errors import InputError
from crs_jax.proposals import Reply, Score


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
      answers: by model, to each of these; one less while a reply is awaited.
      logged_as: id in the log, where one is kept.
    """

    user: list[Turn] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    answers: dict[str, list[Answer]] = dataclasses.field(default_factory=dict)
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
      log: where words and times of the talk go; None: nowhere.
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
        if self.log is not None:  # what cannot be logged is not heard either
            talk.logged_as = talk.logged_as or self.log.new_dialogue()
            self.log.write(talk.logged_as, self.first.model, said, self.first.catalogue, now)
        talk.user.append(said)
        talk.words.append(said.render(self.first.catalogue.names))
        return True

    def answer(self, talk: Conversation, temperature: float) -> Iterator[tuple[str, Answer]]:
        """The reply of each model in turn, taken up in the talk; a message that not all answer leaves no trace."""
        number = len(talk.user)
        try:
            for model, run in self.runs.items():
                started, turns = time.monotonic(), talk.turns(model)
                reply = run.reply(turns, temperature, self._seed(number), self.top)
                score = run.score(turns, reply) if run.can_score else None
                if self.log is not None:
                    self.log.write(talk.logged_as, model, reply.turn, run.catalogue, time.time())
                found = Answer(reply, score, time.monotonic() - started)
                talk.answers.setdefault(model, []).append(found)
                yield model, found
        finally:
            if any(len(talk.answers.get(model, [])) < number for model in self.runs):
                del talk.user[number - 1 :], talk.words[number - 1 :]
                talk.answers = {model: answers[: number - 1] for model, answers in talk.answers.items()}


def signals(score: Score) -> dict[str, float | None]:
    """What is shown of a score, by name."""
    own = {} if score.own is None else {"own": score.own}
    found = {"engagement": score.engagement, "relevance": score.relevance, "sentiment": score.sentiment_shift}
    return {**found, **own, "reward": score.reward}


def signed(value: float | None) -> str:
    """A signal as it is shown: `+0.42`, and `-` where there is none."""
    return "-" if value is None else f"{value:+.2f}"
