"""Ranking instances as arrays: what is ranked, what counts as right, what was already named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Dialogue
from crs_jax.data.instances import Instance


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """One row for each (instance, target): a message that names three items gives three pairs.

    Attributes:
      instance_P: int, the instance's place in the list it came from (a row of the scores).
      dialogue_P: int, the dialogue's index, the unit that is resampled.
      target_P: int, the target's catalogue row.
      fresh_P: bool, the target was not named earlier in the dialogue.
      dialogue_I: int, the dialogue's index of each instance.
      targets_IX: int, the instance's targets, padded with -1.
      named_IX: int, the items named by anyone before the instance's message, padded with -1.
    """

    instance_P: np.ndarray
    dialogue_P: np.ndarray
    target_P: np.ndarray
    fresh_P: np.ndarray
    dialogue_I: np.ndarray
    targets_IX: np.ndarray
    named_IX: np.ndarray

    def __len__(self) -> int:
        return len(self.target_P)

    def select(self, keep_P: np.ndarray) -> Pairs:
        """The pairs where `keep_P` [P] is true; instances stay as they are."""
        kept = {name: getattr(self, name)[keep_P] for name in ("instance_P", "dialogue_P", "target_P", "fresh_P")}
        return dataclasses.replace(self, **kept)


def named_before(
    instances: Sequence[Instance], dialogues: Sequence[Dialogue], catalogue: Catalogue
) -> list[tuple[int, ...]]:
    """For each instance the distinct catalogue rows named before its turn, by anyone, the most recently named last."""
    out = []
    for instance in instances:
        rows: dict[int, None] = {}
        for turn in dialogues[instance.dialogue].turns[: instance.turn]:
            for row in catalogue.rows(turn.items):
                rows.pop(row, None)
                rows[row] = None
        out.append(tuple(rows))
    return out


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    out = np.full((len(rows), max((len(r) for r in rows), default=0)), -1, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def make_pairs(instances: Sequence[Instance], dialogues: Sequence[Dialogue], catalogue: Catalogue) -> Pairs:
    """The pairs of the instances, in order. `dialogues` are those that the instances index."""
    counts = [len(instance.targets) for instance in instances]
    dialogue_I = np.array([instance.dialogue for instance in instances], np.int32)
    return Pairs(
        instance_P=np.repeat(np.arange(len(instances), dtype=np.int32), counts),
        dialogue_P=np.repeat(dialogue_I, counts),
        target_P=np.array([t for instance in instances for t in instance.targets], np.int32),
        fresh_P=np.array([t in instance.fresh for instance in instances for t in instance.targets], bool),
        dialogue_I=dialogue_I,
        targets_IX=_padded([instance.targets for instance in instances]),
        named_IX=_padded(named_before(instances, dialogues, catalogue)),
    )
