"""Weak labels of every recommender reply: engagement, relevance and sentiment shift, cached to disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from crs_jax.inputs.task import SPLITS, Task
from crs_jax.models.heads import SIGNALS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.kept import keep_arrays, kept_arrays
from crs_jax.runtime.progress import say
from crs_jax.signals.engagement import EngagementModel, availability
from crs_jax.signals.feedback_log import FLAG, FeedbackLog, matched, read_log
from crs_jax.signals.relevance import turn_relevance
from crs_jax.signals.sentiment import carried_over, sentiment_shift

VERSION = 3


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of one split, standardised by the training split's mean and standard deviation.

    Attributes:
      signal_DTS: `[dialogues, most turns, 3]` in the order of `SIGNALS`, NaN where a label does not exist.
      available: how many replies each part of engagement is known for.
    """

    signal_DTS: np.ndarray
    available: dict[str, int]


def _raw(task: Task, split: str, engagement: EngagementModel, carried: float) -> np.ndarray:
    dialogues = task.dialogues(split)
    columns = (
        engagement.score(dialogues),
        turn_relevance(dialogues, task.corpus.catalogue, task.contrast_NE, task.embed, task.config.data.window),
        sentiment_shift(dialogues, task.config.signals.sentiment, carried),
    )
    longest = max((len(dialogue.turns) for dialogue in dialogues), default=0)
    out = np.full((len(dialogues), longest, len(SIGNALS)), np.nan, np.float32)
    for s, column in enumerate(columns):
        for d, values in enumerate(column):
            out[d, : len(values), s] = values
    return out


def log_fingerprint(task: Task) -> str:
    """Of the log of dwell times and clicks; empty without one."""
    path = task.config.signals.log
    return hashlib.sha256(pathlib.Path(path).expanduser().read_bytes()).hexdigest()[:16] if path else ""


def known_log(task: Task) -> tuple[FeedbackLog | None, dict[str, int]]:
    """The log that the config names and its lines by split; `InputError` where none is of a training dialogue."""
    path = task.config.signals.log
    if not path:
        return None, {}
    log = read_log(pathlib.Path(path))
    found = {split: matched(log, task.dialogues(split)) for split in SPLITS}
    if not found["train"]:
        raise InputError(f"{FLAG}={path}: none of its {len(log)} lines is of a training dialogue")
    return log, found


def engagement_model(task: Task) -> EngagementModel:
    """Fitted on train, with the log that the config names; `InputError` as `known_log`."""
    s, (log, found) = task.config.signals, known_log(task)
    if found:
        say(f"signals: lines of {s.log} by split: " + ", ".join(f"{split} {n}" for split, n in found.items()))
    return EngagementModel.fit(task.dialogues("train"), s.engagement.to_dict(), log)


def carried(task: Task) -> float:
    """How much of the mood before the sentiment shift takes off, by `config.signals.shift`."""
    s = task.config.signals
    return 1.0 if s.shift == "difference" else carried_over(task.dialogues("train"), s.sentiment)


def label(task: Task, split: str) -> Labels:
    """Labels of `split`; computed once for the same dialogues and settings."""
    settings = {**task.config.signals.to_dict(), "log": log_fingerprint(task)}
    key = json.dumps([VERSION, split, settings, task.config.data.window, task.fingerprint])
    name = f"labels-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for stored in kept_arrays(task.cache, name):
        return Labels(stored["signal_DTS"], json.loads(str(stored["available"])))
    engagement, mood = engagement_model(task), carried(task)
    train = _raw(task, "train", engagement, mood)
    flat = train.reshape(-1, len(SIGNALS)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(flat)
        count_S = np.maximum(known.sum(0), 1)
        mean_S = np.where(known, flat, 0).sum(0) / count_S
        std_S = np.sqrt(np.where(known, (flat - mean_S) ** 2, 0).sum(0) / count_S)
    raw = train if split == "train" else _raw(task, split, engagement, mood)
    labels = Labels(
        ((raw - mean_S) / np.where(std_S > 1e-6, std_S, 1.0)).astype(np.float32),
        availability(task.dialogues(split), engagement),
    )
    keep_arrays(task.cache, name, signal_DTS=labels.signal_DTS, available=json.dumps(labels.available))
    return labels
