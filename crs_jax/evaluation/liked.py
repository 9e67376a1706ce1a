"""Do a policy's odds rise on what seekers liked? Log-probabilities of human proposals against the questionnaires.

A ranking figure asks whether a policy says what the human recommender said; alignment is to please the seeker. Of the
items that people did propose, the questionnaire says which ones were liked, so the log-probability of a proposal, and
what alignment added to it, can be held against that. The questionnaires enter no label, no reward and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Dialogue
from crs_jax.data.instances import Instance
from crs_jax.evaluation.signals import auc


def answers(
    instances: Sequence[Instance], dialogues: Sequence[Dialogue], catalogue: Catalogue
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instance, row and answer (1 liked, 0 not) of each newly proposed item that the seeker answered for."""
    found = []
    for number, instance in enumerate(instances):
        feedback = dialogues[instance.dialogue].feedback
        for row in instance.fresh:
            said = feedback.get(catalogue.items[row].item_id)
            if said is not None and said.liked is not None:
                found.append((number, row, said.liked))
    columns = np.array(found, np.int64).reshape(-1, 3).T
    return columns[0], columns[1], columns[2].astype(np.float64)


def liked_table(
    instances: Sequence[Instance],
    dialogues: Sequence[Dialogue],
    catalogue: Catalogue,
    scores: Mapping[str, np.ndarray],
    bootstrap: int,
) -> dict[str, Any]:
    """AUC of liked over disliked proposals, by row, with 95 % intervals over dialogues.

    Args:
      scores: by row, logits `[I, N]`; they are normalised over the catalogue.
      bootstrap: resamples.

    Returns:
      `{row: {"auc", "auc-low", "auc-high", "n"}}`, and with `sft` and `ppo` among the rows `ppo over sft`: of the
      difference of their log-probabilities, what alignment added. Empty where fewer than two answers differ.
    """
    number_P, row_P, liked_P = answers(instances, dialogues, catalogue)
    if len(np.unique(liked_P)) < 2:
        return {}
    group_P = np.array([instances[n].dialogue for n in number_P])
    logp = {name: scipy.special.log_softmax(s_IN, 1)[number_P, row_P] for name, s_IN in scores.items()}
    if {"sft", "ppo"} <= logp.keys():
        logp["ppo over sft"] = logp["ppo"] - logp["sft"]
    return {name: auc(values, liked_P, group_P, bootstrap) for name, values in logp.items()}
