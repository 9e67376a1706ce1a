"""Ranking instances: where a recommender named items, and which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import RECOMMENDER, Dialogue


@dataclasses.dataclass(frozen=True)
class Instance:
    """One single recommender message that names items, to be ranked from what was said before it.

    Attributes:
      dialogue: index of the dialogue in the sequence given.
      turn: index of the message; the context is the turns before it.
      targets: catalogue rows of the items named, distinct, in order of mention.
      fresh: those of `targets` that nobody named earlier in the dialogue.
    """

    dialogue: int
    turn: int
    targets: tuple[int, ...]
    fresh: tuple[int, ...]


def ranking_instances(dialogues: Sequence[Dialogue], catalogue: Catalogue, role: str = RECOMMENDER) -> list[Instance]:
    """Each recommender message (or the other side's) that names at least one item and is not the dialogue's first.

    Messages are single records: two in a row by the recommender are two instances, the second with the first in its
    context. `InputError` names an item that is not in the catalogue.
    """
    instances = []
    for d, dialogue in enumerate(dialogues):
        named: set[int] = set()
        for t, turn in enumerate(dialogue.turns):
            targets = tuple(catalogue.rows(turn.distinct_items))
            if t and targets and turn.role == role:
                instances.append(Instance(d, t, targets, tuple(row for row in targets if row not in named)))
            named.update(targets)
    return instances
