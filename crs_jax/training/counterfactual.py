"""Proposals that nobody made: the same reply with another item, as weak evidence for the reward model.

Logs hold one proposal a context, chosen by a person, so they cannot say what a bad one would have met with. Beside a
logged reply that proposes one item stand copies that propose another, drawn as often as recommenders name it, in the
act and in the words. A copy counts as a proposal that the seeker does not take up: its label of engagement is the mean
of the logged proposals that were not taken up. No other signal is made up for it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from crs_jax.data.dialogue import RECOMMENDER, Dialogue
from crs_jax.data.packing import Rows
from crs_jax.data.windows import make_windows
from crs_jax.inputs.features import SplitFeatures
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import Task, log_popularity
from crs_jax.signals.engagement import EngagementModel
from crs_jax.signals.registry import column


def not_taken_up(task: Task, signal_DTS: np.ndarray) -> float:
    """Mean engagement label of the training split's proposals that were not taken up; 0 where there are none."""
    uptake = EngagementModel(None, {}, {}, {}).parts(task.dialogues("train"))["uptake"]
    engagement_DT = signal_DTS[..., column("engagement")]
    labels = np.concatenate([engagement_DT[d, : len(row)][row <= 0] for d, row in enumerate(uptake)])
    labels = labels[np.isfinite(labels)]
    return float(labels.mean()) if len(labels) else 0.0


def known_by_then(dialogue: Dialogue, turn: int) -> set[str]:
    """Items named up to the message, and in the answer to it: no copy may propose them."""
    after = dialogue.turns[turn + 1 :]
    answer = next((n for n, later in enumerate(after) if later.role == RECOMMENDER), len(after))
    return {item for said in dialogue.turns[: turn + 1 + answer] for item in said.items}


class Counterfactuals:
    """Draws logged replies, each with its copies.

    Attributes:
      where: (dialogue, turn) of the replies of the training split that propose one new item and have a label of
        engagement, as often as their dialogue was given; empty where there is none.
      label: of the copies.
    """

    def __init__(
        self, task: Task, numbers: np.ndarray, signal_DTS: np.ndarray, split_features: SplitFeatures, member: int = 0
    ):
        """`numbers` are the training dialogues whose replies are used; labels and features are of the whole split.

        Each `member` of an ensemble has draws of its own.
        """
        self.task, self.label = task, not_taken_up(task, signal_DTS)
        self._member = [member] if member else []
        dialogues, catalogue = task.dialogues("train"), task.corpus.catalogue
        engagement_DT, times = signal_DTS[..., column("engagement")], Counter(numbers.tolist())
        share_N = np.exp(log_popularity(task))
        self.where, self._barred = [], []
        for d, t in task.replies("train"):
            proposed = dialogues[d].turns[t].distinct_items
            if not times[d] or not np.isfinite(engagement_DT[d, t]) or len(proposed) != 1:
                continue
            barred = known_by_then(dialogues[d], t)
            before = {item for said in dialogues[d].turns[:t] for item in said.items}
            if proposed[0] not in before and len(catalogue) - len(barred) >= task.config.reward.alternatives:
                self.where += [(d, t)] * times[d]
                self._barred += [catalogue.rows(sorted(barred))] * times[d]
        if not self.where:
            return
        self._share_N, self._real = share_N / share_N.sum(), engagement_DT[tuple(np.array(self.where).T)]
        self._windows = make_windows(task.config, task.encoded["train"], self.where, task.tokenizer)
        self._tokens_BL, self._mask_BL = reply_arrays(task, "train", self.where)
        self._item_B = self._tokens_BL[:, 0] - task.layout.item_offset
        self._split_features, self._at = split_features, np.array(self.where).T

    def draw(self, count: int, step: int) -> Rows:
        """`count` rows, each a logged reply (first of its group G) and its copies; the same for the same step.

        Returns:
          `other_prompt_RP`, `other_mask_RP`: the prompts.
          `other_tokens_RGL`, `other_real_RGL`: the replies, and where they are real.
          `other_features_RGF`: how their items fit (`models/match_features.py`).
          `other_label_RG`: of engagement.
        """
        rng = np.random.default_rng([self.task.config.seed, 23, step, *self._member])
        offset = self.task.layout.item_offset
        index_R = rng.integers(0, len(self.where), count)
        items_RG = np.stack([[self._item_B[i], *self._others(int(i), rng)] for i in index_R]).astype(np.int32)
        tokens_RL, G = self._tokens_BL[index_R], items_RG.shape[1]
        own_RL = tokens_RL == offset + items_RG[:, :1]
        tokens_RGL = np.where(own_RL[:, None], offset + items_RG[..., None], tokens_RL[:, None])
        dialogue_B, turn_B = (np.repeat(a[index_R], G) for a in self._at)
        features_BF = self._split_features.matches_of(dialogue_B, turn_B, items_RG.reshape(-1, 1))
        label_RG = np.full((count, G), self.label, np.float32)
        label_RG[:, 0] = self._real[index_R]
        return {
            "other_prompt_RP": self._windows.tokens_BP[index_R],
            "other_mask_RP": self._windows.mask_BP[index_R],
            "other_tokens_RGL": tokens_RGL.astype(np.int32),
            "other_real_RGL": np.repeat(self._mask_BL[index_R][:, None], G, 1),
            "other_features_RGF": features_BF.reshape(count, G, -1),
            "other_label_RG": label_RG,
        }

    def _others(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """Distinct rows of items that nobody had named, by popularity."""
        open_N = self._share_N.copy()
        open_N[self._barred[i]] = 0.0
        return rng.choice(len(open_N), self.task.config.reward.alternatives, replace=False, p=open_N / open_N.sum())
