"""Proposals that nobody made: the same contexts with other items, as weak evidence for the reward model.

Logs hold one proposal a context, chosen by a person, so they cannot say what a bad one would have met with. Other
items, drawn as often as recommenders name them, are taken as proposals that the seeker does not take up: their label of
engagement is the mean of the real proposals that were not taken up. No other signal is made up for them.
"""

from __future__ import annotations

import numpy as np

from crs_jax.data.packing import Rows
from crs_jax.data.windows import make_windows
from crs_jax.models.heads import SIGNALS
from crs_jax.signals.engagement import EngagementModel
from crs_jax.signals.relevance import context_vectors, named_rows
from crs_jax.training.task import Task, log_popularity


def not_taken_up(task: Task, signal_DTS: np.ndarray) -> float:
    """Mean engagement label of the training split's proposals that were not taken up; 0 where there are none."""
    uptake = EngagementModel(None, {}, {}, {}).parts(task.dialogues("train"))["uptake"]
    engagement_DT = signal_DTS[..., SIGNALS.index("engagement")]
    labels = np.concatenate([engagement_DT[d, : len(row)][row <= 0] for d, row in enumerate(uptake)])
    labels = labels[np.isfinite(labels)]
    return float(labels.mean()) if len(labels) else 0.0


class Counterfactuals:
    """Draws contexts of real proposals, each with other items."""

    def __init__(self, task: Task, numbers: np.ndarray, signal_DTS: np.ndarray):
        """`numbers` are the training dialogues whose contexts are used, `signal_DTS` the labels of the split."""
        self.task, self.group = task, task.config.reward.alternatives
        dialogues, catalogue, inside = task.dialogues("train"), task.corpus.catalogue, set(numbers.tolist())
        self.where = [(d, t) for d, t in task.replies("train") if d in inside and dialogues[d].turns[t].items]
        self.label = not_taken_up(task, signal_DTS)
        self._windows = make_windows(task.config, task.encoded["train"], self.where, task.tokenizer)
        self._vectors = context_vectors(
            dialogues, self.where, catalogue, task.content_NE, task.embed, task.config.data.window
        )
        named_BX = named_rows(dialogues, self.where, catalogue)[0]
        self._barred = [
            {*(row for row in named.tolist() if row >= 0), *catalogue.rows(dialogues[d].turns[t].distinct_items)}
            for named, (d, t) in zip(named_BX, self.where, strict=True)
        ]
        share_N = np.exp(log_popularity(task))
        self._share_N = share_N / share_N.sum()

    def draw(self, count: int, step: int) -> Rows:
        """`count` rows: prompts, acts of one other item each, their features, and the label.

        Returns:
          `other_prompt_RP`, `other_mask_RP`, `other_act_RG2`, `other_features_RGF`, `other_label_R`.
        """
        rng, layout = np.random.default_rng([self.task.config.seed, 23, step]), self.task.layout
        index_R = rng.integers(0, len(self.where), count)
        items_RG = np.stack([self._others(int(i), rng) for i in index_R])
        vectors_RGE = self.task.content_NE[items_RG]
        cosines = [
            np.einsum("RGE,RE->RG", vectors_RGE, self._vectors[part][index_R]) for part in ("text_BE", "named_BE")
        ]
        return {
            "other_prompt_RP": self._windows.tokens_BP[index_R],
            "other_mask_RP": self._windows.mask_BP[index_R],
            "other_act_RG2": np.stack([layout.item_offset + items_RG, np.full_like(items_RG, layout.say)], -1),
            "other_features_RGF": np.stack([*cosines, np.ones_like(cosines[0])], -1).astype(np.float32),
            "other_label_R": np.full(count, self.label, np.float32),
        }

    def _others(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """Distinct items that were neither named before nor proposed there, by popularity."""
        open_N = self._share_N.copy()
        open_N[list(self._barred[i])] = 0.0
        free = min(self.group, int((open_N > 0).sum()))
        drawn = rng.choice(len(open_N), free, replace=False, p=open_N / open_N.sum())
        return np.resize(drawn, self.group).astype(np.int32)
