"""Weak labels of every recommender reply, one a signal, cached to disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from crs_jax import plugins
from crs_jax.inputs.task import SPLITS, Task
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.kept import keep_arrays, kept_arrays
from crs_jax.runtime.progress import say
from crs_jax.signals.feedback_log import FLAG, FeedbackLog, matched, read_log
from crs_jax.signals.registry import SIGNALS, Labeller, Sources

VERSION = 3


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of one split, standardised by the training split's mean and standard deviation.

    Attributes:
      signal_DTS: `[dialogues, most turns, S]` in the order of `SIGNALS`, NaN where a label does not exist.
      available: how many replies the parts of labels are known for.
    """

    signal_DTS: np.ndarray
    available: dict[str, int]


def _raw(task: Task, split: str, labellers: Mapping[str, Labeller]) -> np.ndarray:
    dialogues = task.dialogues(split)
    longest = max((len(dialogue.turns) for dialogue in dialogues), default=0)
    out = np.full((len(dialogues), longest, len(labellers)), np.nan, np.float32)
    for s, (name, labeller) in enumerate(labellers.items()):
        columns = labeller.label(dialogues)
        if [len(values) for values in columns] != [len(dialogue.turns) for dialogue in dialogues]:
            raise InputError(f"signal {name!r}: its labels are not one number for each turn of each dialogue")
        for d, values in enumerate(columns):
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


def sources(task: Task) -> Sources:
    """What labellers are fitted on: train, with the log that the config names; `InputError` as `known_log`."""
    s, (log, found) = task.config.signals, known_log(task)
    if found:
        say(f"signals: lines of {s.log} by split: " + ", ".join(f"{split} {n}" for split, n in found.items()))
    catalogue, window = task.corpus.catalogue, task.config.data.window
    return Sources(task.dialogues("train"), catalogue, task.contrast_NE, task.embed, window, s.to_dict(), log)


def label(task: Task, split: str) -> Labels:
    """Labels of `split`; computed once for the same dialogues and settings."""
    settings = {**task.config.signals.to_dict(), "log": log_fingerprint(task)}
    code = plugins.fingerprints(task.config.plugins)
    key = json.dumps([VERSION, list(SIGNALS), code, split, settings, task.config.data.window, task.fingerprint])
    kept_as = f"labels-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for stored in kept_arrays(task.cache, kept_as):
        return Labels(stored["signal_DTS"], json.loads(str(stored["available"])))
    given = sources(task)
    labellers = {name: signal.fit(given) for name, signal in SIGNALS.items()}
    train = _raw(task, "train", labellers)
    flat = train.reshape(-1, len(labellers)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(flat)
        count_S = np.maximum(known.sum(0), 1)
        mean_S = np.where(known, flat, 0).sum(0) / count_S
        std_S = np.sqrt(np.where(known, (flat - mean_S) ** 2, 0).sum(0) / count_S)
    raw = train if split == "train" else _raw(task, split, labellers)
    labels = Labels(
        ((raw - mean_S) / np.where(std_S > 1e-6, std_S, 1.0)).astype(np.float32),
        {name: n for one in labellers.values() for name, n in one.counts(task.dialogues(split)).items()},
    )
    keep_arrays(task.cache, kept_as, signal_DTS=labels.signal_DTS, available=json.dumps(labels.available))
    return labels
