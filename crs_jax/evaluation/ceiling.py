"""The highest correlation that any predictor from context and reply could have with a signal, as far as it is known.

A reaction is chance in part. Of several reactions to one message the correlation r between two is the share of the
variance that is not chance, and the best predictor, their expectation, correlates with one of them by the square root
of r (the index of reliability; Lord & Novick 1968, 3.2). It takes repeated reactions: the simulator gives them. A real
corpus holds one reaction a context, and none can be given. The agreement of engagement's parts does not stand in for
it: a predictor may foretell each part by other means than what they share.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from crs_jax.data.corpora import is_simulated
from crs_jax.data.simulated import retest
from crs_jax.evaluation.signals import correlation
from crs_jax.inputs.labels import sources
from crs_jax.inputs.task import Task
from crs_jax.signals.registry import SIGNALS

DRAWS = 4  # other reactions to each message
KNOWN = "exact: a function of context and reply"
PLAYED = "upper bound: the same reactions drawn anew, counting the seeker's hidden traits as known"
NONE = "none: one reaction a context"


def repeated(task: Task, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each signal without a formula, `[P, 1 + DRAWS]`, of each labelled reply of the simulator's corpus, as it is and
    with other reactions; NaN where there is none. And the dialogue of each, `[P]`.
    """
    assert task.corpus.folder is not None
    dialogues = task.dialogues(split)
    again = retest(task.corpus.folder, dialogues, task.corpus.catalogue, DRAWS).again
    draws = [
        (d, other) for d, dialogue in enumerate(dialogues) for o in again[dialogue.dialogue_id].values() for other in o
    ]
    talks = [*dialogues, *(other for _, other in draws)]
    given = sources(task)
    scored = {name: signal.fit(given).label(talks) for name, signal in SIGNALS.items() if signal.score is None}
    place = {id(other): number for number, (_, other) in enumerate(draws, len(dialogues))}
    rows: dict[str, list[list[float]]] = {name: [] for name in scored}
    where = task.replies(split)
    for d, t in where:
        # After the last message of a talk nothing follows but its end, and nothing else could.
        others = again[dialogues[d].dialogue_id].get(t)
        numbers = [d, *([d] * DRAWS if others is None else (place[id(other)] for other in others))]
        for name, values in scored.items():
            rows[name].append([float(values[n][t]) for n in numbers])
    return {name: np.array(values) for name, values in rows.items()}, np.array([d for d, _ in where])


def noise_ceiling(task: Task, split: str) -> dict[str, dict[str, Any]]:
    """By signal: `ceiling-from` (what it rests on) and, where there is one, `ceiling` with `-low` and `-high`.

    Intervals resample dialogues.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"ceiling-from": NONE} if signal.score is None else {"ceiling": 1.0, "ceiling-from": KNOWN}
        for name, signal in SIGNALS.items()
    }
    if not is_simulated(task.corpus.name) or task.config.signals.log:
        return found
    values, group_P = repeated(task, split)
    for name, value_PJ in values.items():
        pairs = list(itertools.permutations(range(value_PJ.shape[1]), 2))
        known_P = np.isfinite(value_PJ[:, 0])
        one, other = (np.concatenate([value_PJ[known_P, pair[side]] for pair in pairs]) for side in (0, 1))
        r = correlation(one, other, np.tile(group_P[known_P], len(pairs)), task.config.evaluation.bootstrap)
        ends = {f"ceiling{end}": math.sqrt(max(r[f"pearson{end}"], 0.0)) for end in ("", "-low", "-high")}
        found[name] = {**ends, "ceiling-from": PLAYED}
    return found
