"""Do a policy's odds rise on what seekers liked? Log-probabilities of human proposals against the questionnaires.

A ranking figure asks whether a policy says what the human recommender said; alignment is to please the seeker. Of the
items that people did propose, the questionnaire says which ones were liked, so the log-probability of a proposal, and
what alignment added to it, can be held against that. The questionnaires enter no label, no reward and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import Dialogue
from crs_jax.data.instances import Instance
from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.optimum import item_rewards
from crs_jax.evaluation.signals import auc
from crs_jax.inputs.task import Task, log_popularity
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import Aligned

RANDOM = 8  # items that a proposal's reward is held against


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


def rivals(rng: np.random.Generator, named: np.ndarray, own: int, share_N: np.ndarray) -> np.ndarray:
    """Rows of `RANDOM` distinct items, drawn by `share_N` of those that are neither `own` nor `named` (-1 padded)."""
    open_N = share_N.copy()
    open_N[[own, *named[named >= 0]]] = 0.0
    return rng.choice(len(open_N), RANDOM, replace=False, p=open_N / open_N.sum())


def reward_table(
    task: Task, aligned: Aligned, instances: Sequence[Instance], dialogues: Sequence[Dialogue], contexts: Contexts
) -> dict[str, Any]:
    """Whether the reward of an act tells what was liked: from what was not, and from other items.

    Args:
      contexts: of the instances.

    Returns:
      `reward`: AUC of liked over disliked proposals, as in `liked_table`. `reward, over any items` and `reward, over
      known items`: the chance that a liked proposal has a higher reward than another item in its context, drawn evenly
      or by popularity, ties counting half, under the same names. Empty without answers of both kinds, or in
      a catalogue too small to draw from.
    """
    number_P, row_P, liked_P = answers(instances, dialogues, task.corpus.catalogue)
    named_CX, popular_N = np.asarray(contexts.features.named), np.exp(log_popularity(task))
    if len(np.unique(liked_P)) < 2 or len(popular_N) - 1 - (named_CX[number_P] >= 0).sum(1).max() < RANDOM:
        return {}
    rng, bootstrap = np.random.default_rng([task.config.seed, 37]), task.config.evaluation.bootstrap
    shares = {"any": np.ones(len(popular_N)), "known": popular_N}
    row_PA = np.array([
        [row, *(r for share_N in shares.values() for r in rivals(rng, named_CX[n], row, share_N))]
        for n, row in zip(number_P, row_P, strict=True)
    ], np.int32)  # fmt: skip
    some: Any = jax.tree.map(lambda a: np.asarray(a)[number_P], contexts)
    reward_PA = item_rewards(task, aligned.graphs, aligned.frozen_models, aligned.normaliser, some, row_PA)
    group_P = np.array([instances[n].dialogue for n in number_P])
    out: dict[str, Any] = {"reward": auc(reward_PA[:, 0], liked_P, group_P, bootstrap)}
    liked = liked_P == 1
    for k, name in enumerate(shares):
        others = reward_PA[liked, 1 + k * RANDOM : 1 + (k + 1) * RANDOM]
        higher_P = ((reward_PA[liked, :1] > others) + 0.5 * (reward_PA[liked, :1] == others)).mean(1)
        means_R = resample(group_P[liked], bootstrap, task.config.seed).means(higher_P[:, None])[:, 0]
        found = interval(float(higher_P.mean()), means_R)
        both = {"auc": found["value"], "auc-low": found["low"], "auc-high": found["high"]}
        out[f"reward, over {name} items"] = {**both, "n": int(liked.sum())}
    return out
