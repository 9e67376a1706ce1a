"""How well the reward model predicts reactions that it was neither fitted on nor chosen by."""

from __future__ import annotations

from typing import Any

import numpy as np

from crs_jax.evaluation.ceiling import noise_ceiling
from crs_jax.evaluation.observed import by_place
from crs_jax.evaluation.signals import auc, calibration, correlation
from crs_jax.inputs.labels import label
from crs_jax.inputs.task import Task
from crs_jax.rl.frozen_models import Model
from crs_jax.signals.registry import SIGNALS
from crs_jax.training.reward import predict_replies


def held_out(task: Task, reward: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """How well the reward model predicts the signals of replies it was neither fitted on nor chosen by.

    The validation split shares no recommender and no seeker with train where the corpus names them. Beside each
    signal's correlation stand the highest that any predictor could have where that is known, its calibration in label
    units (standard deviations on train), the correlation of a least-squares fit on the place in the talk (`by_place`),
    and AUCs against what the seeker later said they liked, of the label and of the prediction.

    Returns:
      The section `reward_model` of metrics.json, and `labels`: how many replies each part of engagement is known for.
    """
    split, bootstrap = "validation", task.config.evaluation.bootstrap
    labels = label(task, split)
    where = [(d, t) for d, t in task.replies(split) if np.isfinite(labels.signal_DTS[d, t]).any()]
    predicted_PS = predict_replies(task, *reward, split, where)
    observed_PS = np.array([labels.signal_DTS[d, t] for d, t in where]).reshape(-1, len(SIGNALS))
    group_P = np.array([d for d, _ in where])
    dialogues = task.dialogues(split)
    liked_P = np.full(len(where), np.nan)
    for p, (d, t) in enumerate(where):
        said = [dialogues[d].feedback[i].liked for i in dialogues[d].turns[t].items if i in dialogues[d].feedback]
        if any(liked is not None for liked in said):
            liked_P[p] = float(any(liked == 1 for liked in said))
    found: dict[str, Any] = noise_ceiling(task, split)
    place_PS = by_place(task, split, where)
    for s, name in enumerate(SIGNALS):
        both = (predicted_PS[:, s], observed_PS[:, s], group_P, bootstrap)
        found[name] = {**correlation(*both), **found[name], **calibration(*both)}
        found[name]["pearson-by-place"] = correlation(place_PS[:, s], observed_PS[:, s], group_P, 1)["pearson"]
        for side, values_P in (("observed", observed_PS[:, s]), ("predicted", predicted_PS[:, s])):
            keep = np.isfinite(values_P) & np.isfinite(liked_P)
            if len(np.unique(liked_P[keep])) == 2:
                against = auc(values_P[keep], liked_P[keep], group_P[keep], bootstrap)
                found[name] |= {k.replace("auc", f"auc-liked-{side}"): v for k, v in against.items() if "auc" in k}
    return found, {"split": split, **labels.available}
