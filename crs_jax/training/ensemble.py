"""Members of an ensemble of reward models: what each is fitted on.

All start from the SFT model, whose text is the same, so an order of the data and dropout of their own leave them close
together, also where they are all wrong (Gleave & Irving 2022, arXiv 2203.07472). What a reward model does not know is
mostly what a few hundred dialogues cannot tell it, so the members after the first are each fitted, heads' least squares
included, on a bootstrap of the dialogues (Breiman 1996, bagging): where another draw of dialogues would have taught
something else, the members disagree. On the embedded corpus (four members, seed 0) that takes their spread over SFT's
acts from .035 to .061 standard deviations of the reward and leaves held-out Pearson as it is. The first is the reward
model that stands alone without an ensemble.

The spread sees what a sample of dialogues leaves open, and nothing that every sample teaches alike: a question that
keeps seekers talking is rewarded by all members, however often the policy asks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from crs_jax.data.packing import Packer, Rows
from crs_jax.inputs.features import SplitFeatures
from crs_jax.inputs.task import Task
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.sft import batches, make_packer


class Member(NamedTuple):
    """One reward model's data.

    Attributes:
      number: 0 for the first.
      dialogues: numbers of the training dialogues it is fitted on, in order, some more than once.
      packer: of these.
      others: replies beside them; None without counterfactual ones.
      key: of its dropout.
    """

    number: int
    dialogues: np.ndarray
    packer: Packer
    others: Counterfactuals | None
    key: jax.Array

    def batches(self, task: Task) -> Iterator[tuple[int, Rows]]:
        """Endless (epoch, batch), in an order of its own."""
        return batches(self.packer, task, "reward", task.config.sft.rows, task.config.sft.crop, self.number)


def drawn(seed: int, fitted: np.ndarray, number: int) -> np.ndarray:
    """Dialogues of a member: for the first all `fitted`, for another as many of them, drawn with repetition."""
    if number == 0:
        return fitted
    return np.sort(np.random.default_rng([seed, 43, number]).choice(fitted, len(fitted)))


def member(
    task: Task, number: int, fitted: np.ndarray, signal_DTS: np.ndarray, split_features: SplitFeatures
) -> Member:
    """The member of that number; `fitted` are the dialogues that may be used."""
    seed, dialogues = task.config.seed, drawn(task.config.seed, fitted, number)
    others = (
        Counterfactuals(task, dialogues, signal_DTS, split_features, number)
        if task.config.reward.counterfactual
        else None
    )
    key = jax.random.key(seed + 3)
    if number:
        key = jax.random.fold_in(key, 2**31 + number)  # no number of a step
    return Member(number, dialogues, make_packer(task, "train", dialogues), others, key)
