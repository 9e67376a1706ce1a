"""The simulated corpus' seekers as partners: they answer other recommendations than those that were logged.

What they say follows the rules that wrote the corpus (`simulated_talk.py`): the true utility of what is newly proposed
decides mood, uptake and leaving, each with its noise, and the words come from the same templates. The recommender's
words do not sway them. A reply that proposes nothing new is answered by the next thing they can tell of their taste.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from crs_jax.data import simulated_words as words
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.data.simulated import cast
from crs_jax.data.simulated_talk import Conversation, Message, Recommender, Spoken
from crs_jax.data.simulated_truth import TRUTH_FILE, Truth
from crs_jax.data.simulated_world import Seeker, World
from crs_jax.runtime.errors import InputError

_MENTION = re.compile(r"@([0-9]+)")


class Answering(Conversation):
    """A conversation that goes on from the given turns, one answer at a time."""

    def __init__(self, rng: np.random.Generator, world: World, seeker: Seeker, turns: Sequence[Turn]) -> None:
        """What the seeker has told of their taste is read off their words."""
        self._before = turns
        super().__init__(rng, world, seeker, Recommender(0.0, 0.0))

    def _play(self) -> None:
        row_of = {item: row for row, item in enumerate(self.world.ids)}
        self.messages = [Message(turn.role, turn.render(), 0) for turn in self._before]
        for turn in self._before:
            for item in turn.items:
                self.suggested.setdefault(row_of[item], int(turn.role == RECOMMENDER))
        told = " ".join(message.text for message in self.messages if message.role == SEEKER)
        for need in dict.fromkeys(self._unsaid):
            for _ in range(min(self._times(told, *need), self._unsaid.count(need))):
                self._unsaid.remove(need)

    def _times(self, text: str, kind: str, value: int) -> int:
        if kind == "genre":
            options = words.GENRES[value].asks
        elif kind == "person":
            options = (self.world.persons[value],)
        else:
            options = (words.DECADES[value] if kind == "decade" else self._at(value),)
        forms = {form.format(**{kind: option}) for form in words.NEEDS[kind] for option in options}
        return sum(text.count(form) for form in forms)

    def answer(self) -> tuple[str, bool]:
        """What the seeker says to the last message, empty where they leave without a word; and whether they stay."""
        before, last = self._before[:-1], self._before[-1]
        known = {item for turn in before for item in turn.items}
        rows = [self.world.ids.index(item) for item in last.distinct_items if item not in known]
        count = len(self.messages)
        if rows:
            stays = self._react(Spoken("", float(self.seeker.utility_N[rows].mean()), tuple(rows)))
        else:
            stays = True
            self._reply([self._need()], 0.4)
        return " ".join(message.text for message in self.messages[count:]), stays


class SimulatedSeekers:
    """The seekers of a folder that the simulator wrote, by dialogue."""

    def __init__(self, folder: pathlib.Path, settings: Any, seed: int):
        """Draws them again; `InputError` where the folder holds others."""
        self.world, self._seekers = cast(settings, seed)
        truth = Truth.load(folder)
        for number, dialogue in enumerate(truth.dialogue_ids):
            drawn = self._seekers.get(dialogue)
            if drawn is None or not np.array_equal(drawn.utility_N.astype(np.float32), truth.utility_DN[number]):
                raise InputError(
                    f"{folder / TRUTH_FILE}: other seekers than those of config.simulator and config.seed; "
                    "generate the corpus anew"
                )

    def answer(self, dialogue_id: str, turns: Sequence[Turn], rng: np.random.Generator) -> tuple[Turn, bool]:
        """What the dialogue's seeker says to the recommender's message, the last of the turns; whether they stay."""
        text, stays = Answering(rng, self.world, self._seekers[dialogue_id], turns).answer()
        items = tuple(_MENTION.findall(text))
        return Turn(SEEKER, _MENTION.sub(MENTION, text), items), stays
