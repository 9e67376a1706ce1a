"""What the act head learns from: contexts and the items that were named in them.

The recommenders of a few thousand dialogues name too few items to learn seven thousand from. What seekers name of
themselves, and what either side goes on to name a little later, was wanted in that context too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from crs_jax.data.dialogue import SEEKER
from crs_jax.data.instances import Instance, ranking_instances
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.features import features_at
from crs_jax.inputs.task import Task

MOST_TARGETS = 16
SOON = 8  # utterances after the reply in which an item counts as named later


class Examples(NamedTuple):
    """Contexts, leading axis B, and what was named in them.

    Attributes:
      features: of the contexts.
      target_BY: rows of items, -1 padded.
      weight_BY: of each in the loss.
    """

    features: ContextFeatures
    target_BY: Any
    weight_BY: Any


def fresh_instances(task: Task, split: str, **role: str) -> list[Instance]:
    """Messages (by default the recommenders') that name something new."""
    return [i for i in ranking_instances(task.dialogues(split), task.corpus.catalogue, **role) if i.fresh]


def named_later(task: Task, split: str, instance: Instance) -> list[int]:
    """Rows of the items that either side names for the first time in the `SOON` utterances after the message."""
    turns, catalogue = task.dialogues(split)[instance.dialogue].turns, task.corpus.catalogue
    known = {item for turn in turns[: instance.turn + 1] for item in turn.items}
    after = turns[instance.turn + 1 : instance.turn + 1 + SOON]
    return catalogue.rows(dict.fromkeys(item for turn in after for item in turn.items if item not in known))


def examples(
    task: Task, split: str, instances: Sequence[Instance], weight: float = 1.0, later: float = 0.0
) -> Examples:
    """Host arrays of the instances: what is newly named counts `weight`, what is named later `weight * later`."""
    features = features_at(task, split, [(i.dialogue, i.turn) for i in instances])
    target_BY = np.full((len(instances), MOST_TARGETS), -1, np.int32)
    weight_BY = np.zeros((len(instances), MOST_TARGETS), np.float32)
    for b, instance in enumerate(instances):
        also = named_later(task, split, instance) if later else []
        rows = [*instance.fresh, *also][:MOST_TARGETS]
        target_BY[b, : len(rows)] = rows
        weight_BY[b, : len(rows)] = [*[weight] * len(instance.fresh), *[weight * later] * len(also)][:MOST_TARGETS]
    return Examples(features, target_BY, weight_BY)


def training_examples(task: Task) -> Examples:
    """Of the training split, by `config.head`: the recommenders' messages, the seekers', and what is named later."""
    c = task.config.head
    found = examples(task, "train", fresh_instances(task, "train"), later=c.later)
    if not c.seeker:
        return found
    seekers = examples(task, "train", fresh_instances(task, "train", role=SEEKER), c.seeker, c.later)
    return jax.tree.map(lambda *parts: np.concatenate(parts), found, seekers)
