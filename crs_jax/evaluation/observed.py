"""What observed signals say of what seekers answered later: each weak label against `liked`, `seen` and staying.

The answers are in questionnaires filled in after the talk. They never enter a label or a reward; this table shows how
much of them the labels hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from crs_jax.data.dialogue import Dialogue
from crs_jax.evaluation.signals import auc, correlation
from crs_jax.inputs.labels import label, sources
from crs_jax.inputs.task import Task
from crs_jax.rl.reward import combine
from crs_jax.signals.engagement import PARTS, EngagementModel, timing
from crs_jax.signals.reactions import Reaction, plain_text, reactions
from crs_jax.signals.registry import SIGNALS, weights
from crs_jax.signals.sentiment import sentiment

OUTCOMES = ("liked", "seen", "continuation")


def answered(dialogue: Dialogue, reaction: Reaction, question: str) -> float:
    """1 where the seeker said yes of any item proposed, 0 where of none, NaN where they said nothing of any."""
    items = {item for turn in reaction.proposal for item in turn.items if item in dialogue.feedback}
    said = [getattr(dialogue.feedback[item], question) for item in items]
    known = [answer for answer in said if answer is not None]
    return float(any(answer == 1 for answer in known)) if known else float("nan")


def observed(task: Task, split: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Signals, outcomes and the dialogue of each recommender message that ends a proposal of items and is answered.

    Beside the labels (as trained on) and the parts of engagement stand two raw figures: the logarithm of 1 + the
    seconds to the answer, and the sentiment of the reaction.
    """
    dialogues = task.dialogues(split)
    found = [(d, r) for d, dialogue in enumerate(dialogues) for r in reactions(dialogue)]
    found = [(d, r) for d, r in found if r.after and any(turn.items for turn in r.proposal)]
    at = [(d, r.turn) for d, r in found]
    parts = EngagementModel.of(sources(task))
    scaled, labels = parts.standardised(dialogues), label(task, split).signal_DTS
    label_PS = np.array([labels[d, t] for d, t in at], np.float32).reshape(-1, len(SIGNALS))
    weight_S = jnp.array(weights(task.config.reward), jnp.float32)
    signals = {
        "latency": np.array([(timing(r) or (np.nan,))[0] for _, r in found]),
        **{part: np.array([scaled[part][d][t] for d, t in at]) for part in PARTS},
        "reaction's sentiment": sentiment([plain_text(r.after) for _, r in found], task.config.signals.sentiment),
        **dict(zip(SIGNALS, label_PS.T, strict=True)),
        "reward": np.asarray(combine(jnp.asarray(label_PS), weight_S, float("inf"))),
    }
    outcomes = {name: np.array([answered(dialogues[d], r, name) for d, r in found]) for name in OUTCOMES[:2]}
    outcomes["continuation"] = np.array([float(r.returns) for _, r in found])
    return signals, outcomes, np.array([d for d, _ in found], np.int64)


def by_place(task: Task, split: str, where: Sequence[tuple[int, int]]) -> np.ndarray:
    """Signals `[P, S]` of replies by what asks for no model: turn, its square, words, whether anything is proposed.

    Least squares on the labels of train: what a reward model must beat to have understood more than the place.
    """

    def features(some: str, at: Sequence[tuple[int, int]]) -> np.ndarray:
        turns = [task.dialogues(some)[d].turns[t] for d, t in at]
        place = np.array([t for _, t in at], np.float64) / 10
        words = np.array([np.log1p(len(turn.text.split())) for turn in turns])
        return np.stack([np.ones(len(at)), place, place**2, words, [bool(turn.items) for turn in turns]], 1)

    known = task.replies("train")
    label_PS, x_PF = label(task, "train").signal_DTS[tuple(np.array(known).T)], features("train", known)
    out = np.zeros((len(where), len(SIGNALS)))
    for s in range(len(SIGNALS)):
        there = np.isfinite(label_PS[:, s])
        if there.any():
            out[:, s] = features(split, where) @ np.linalg.lstsq(x_PF[there], label_PS[there, s], rcond=None)[0]
    return out


def signal_table(task: Task, split: str) -> dict[str, Any]:
    """By outcome, by signal: Pearson, Spearman and AUC with 95 % intervals over dialogues, and counts.

    A signal that staying is a part of is not held against staying. What cannot be said (one outcome alone, a signal
    that is constant or missing) is left out.
    """
    signals, outcomes, group_P = observed(task, split)
    holds_staying = ("continuation", "reward", *(name for name, signal in SIGNALS.items() if signal.of_staying))
    bootstrap = task.config.evaluation.bootstrap
    table: dict[str, Any] = {}
    for outcome, outcome_P in outcomes.items():
        rows = {}
        for name, value_P in signals.items():
            if outcome == "continuation" and name in holds_staying:
                continue
            keep = np.isfinite(value_P) & np.isfinite(outcome_P)
            if keep.sum() < 3 or len(np.unique(outcome_P[keep])) < 2 or np.ptp(value_P[keep]) == 0:
                continue
            some = (value_P[keep], outcome_P[keep], group_P[keep], bootstrap)
            rows[name] = {**correlation(*some), **auc(*some)}
        if rows:
            table[outcome] = rows
    return table
