"""How far the classifier of sentiment is wrong: what it makes of seekers' answers, against what is known of them.

Of real seekers the questionnaire says, later, whether they liked what was proposed. An answer need not speak of that,
so what is counted wrong here is more than the classifier's own error. The simulator knows the mood that the words of an
answer were chosen by, and the true utility of what was proposed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crs_jax.data.corpora import is_simulated
from crs_jax.data.simulated import retest
from crs_jax.data.simulated_truth import Truth
from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.observed import answered
from crs_jax.evaluation.signals import auc, correlation
from crs_jax.inputs.task import Task
from crs_jax.runtime.progress import say
from crs_jax.signals.reactions import plain_text, reactions
from crs_jax.signals.sentiment import sentiment

NO_ANSWERS = "none: no answers about items in this split, or all the same"


def sign_errors(
    score_P: np.ndarray, liked_P: np.ndarray, group_P: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float]:
    """How the sign of a score tells liked from not liked.

    Args:
      score_P: positive is to mean liked, negative not; 0 is undecided.
      liked_P: 1 or 0.
      group_P: the dialogue of each, resampled for 95 % intervals.

    Returns:
      auc: of the score, undecided ones among the rest.
      undecided: share of scores that are 0.
      accuracy: share of right signs among the decided.
      balanced-accuracy: mean of that share of the liked and of the others; one half says nothing.
      majority: share of the commoner answer among the decided, which a constant sign would get right.
      All but the last with `-low` and `-high`, and the counts `n` and `positives` (liked).
    """
    weights = resample(group_P, bootstrap, seed)
    decided_P, right_P = score_P != 0, (score_P > 0) == (liked_P == 1)
    columns = [np.ones(len(score_P)), *(decided_P & (liked_P == one) for one in (1, 0))]
    columns += [decided_P & right_P & (liked_P == one) for one in (1, 0)]
    table_PM = np.stack(columns, 1).astype(np.float64)

    def figures(sums_RM: np.ndarray) -> tuple[np.ndarray, ...]:
        total, liked, other, right_liked, right_other = sums_RM.T
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracy = (right_liked + right_other) / (liked + other)
            return 1 - (liked + other) / total, accuracy, 0.5 * (right_liked / liked + right_other / other)

    whole, resampled = figures(table_PM.sum(0, keepdims=True)), figures(weights.sums(table_PM))
    out = auc(score_P, liked_P, group_P, bootstrap, seed)
    for name, value, values_R in zip(("undecided", "accuracy", "balanced-accuracy"), whole, resampled, strict=True):
        found = interval(float(value[0]), values_R)
        out |= {name: found["value"], f"{name}-low": found["low"], f"{name}-high": found["high"]}
    share = float(liked_P[decided_P].mean()) if decided_P.any() else float("nan")
    return {**out, "majority": max(share, 1 - share)}


def classifier_error(task: Task, split: str) -> dict[str, Any]:
    """Of the seekers' answers to proposals of a split, by `config.signals.sentiment`.

    Returns:
      `{"classifier": name, "answers": how many, "liked": `sign_errors` where the questionnaire says of any item
      proposed, else a word that there is none}`; on the simulator also `mood` and `utility`: correlation of the score
      with the seeker's mood and with the mean true utility of the items proposed.
    """
    dialogues, bootstrap = task.dialogues(split), task.config.evaluation.bootstrap
    found = [(d, r) for d, dialogue in enumerate(dialogues) for r in reactions(dialogue)]
    found = [(d, r) for d, r in found if r.after and any(turn.items for turn in r.proposal)]
    score_P = sentiment([plain_text(r.after) for _, r in found], task.config.signals.sentiment)
    liked_P = np.array([answered(dialogues[d], r, "liked") for d, r in found])
    group_P, known_P = np.array([d for d, _ in found], np.int64), np.isfinite(liked_P)
    out: dict[str, Any] = {"classifier": task.config.signals.sentiment, "answers": len(found), "liked": NO_ANSWERS}
    if len(np.unique(liked_P[known_P])) == 2:
        out["liked"] = sign_errors(score_P[known_P], liked_P[known_P], group_P[known_P], bootstrap)
    if is_simulated(task.corpus.name):
        assert task.corpus.folder is not None
        mood = retest(task.corpus.folder, dialogues, task.corpus.catalogue, draws=0).mood
        truth = Truth.load(task.corpus.folder).aligned(task.corpus.catalogue)
        rows = [task.corpus.catalogue.rows(i for turn in r.proposal for i in turn.distinct_items) for _, r in found]
        names = [dialogues[d].dialogue_id for d, _ in found]
        mood_P = np.array([mood[name][r.turn] for name, (_, r) in zip(names, found, strict=True)])
        utility_P = np.array([truth.utility(name)[some].mean() for name, some in zip(names, rows, strict=True)])
        out["mood"] = correlation(score_P, mood_P, group_P, bootstrap)
        out["utility"] = correlation(score_P, utility_P, group_P, bootstrap)
    return out


def say_error(found: dict[str, Any]) -> None:
    """What `classifier_error` found, in a line on the console."""
    parts, liked = [], found["liked"]
    if isinstance(liked, str):
        parts.append(f"against liked {liked}")
    else:
        names = (
            ("auc", "AUC"),
            ("accuracy", "accuracy"),
            ("balanced-accuracy", "balanced"),
            ("undecided", "undecided"),
        )
        parts += [f"{name} {liked[k]:.2f} ({liked[f'{k}-low']:.2f} .. {liked[f'{k}-high']:.2f})" for k, name in names]
        parts.append(f"majority {liked['majority']:.2f}, n {liked['n']}, against liked")
    true = [(k, words) for k, words in (("mood", "the seeker's mood"), ("utility", "the true utility")) if k in found]
    parts += [f"Pearson {found[k]['pearson']:.2f} with {words}" for k, words in true]
    say(f"sentiment by {found['classifier']}: {', '.join(parts)}")
