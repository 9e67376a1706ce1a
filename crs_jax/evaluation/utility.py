"""True utility of proposals: what only the simulator knows, and the one figure no reward model can flatter."""

from __future__ import annotations

import numpy as np
import scipy.special

from crs_jax.data.simulated_truth import Truth
from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.policies import generate, ranking_scores
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import Task
from crs_jax.rl.frozen_models import Model


def true_utility(task: Task, models: dict[str, Model]) -> dict[str, float]:
    """Mean true utility, in [0, 1], of what each policy proposes on the test split.

    Items that were named before do not count: repeating what the seeker said they love is no recommendation.
    `utility_<row>`: expectation under the policy's own distribution over the other items right after `<|rec|>`, at
    every recommender turn (exact, no sampling noise). `proposed_<row>`: mean over the new items of sampled replies that
    propose any; `recommends_<row>`: the share of those. `difference`: ppo - sft of the first, paired, with a 95 %
    interval over dialogues. `utility_human`, `utility_random` and `utility_best` (the dialogue's best) stand beside.
    """
    corpus, where = task.corpus, task.replies("test")
    assert corpus.folder is not None
    truth = Truth.load(corpus.folder).aligned(corpus.catalogue)
    utility_DN = np.stack([truth.utility(dialogue.dialogue_id) for dialogue in corpus.test])
    dialogue_B = np.array([d for d, _ in where])
    utility_BN = utility_DN[dialogue_B].astype(np.float64)
    contexts = contexts_at(task, "test", where)
    row_BX, column_BX = np.nonzero(contexts.features.named >= 0)
    named = (row_BX, np.asarray(contexts.features.named)[row_BX, column_BX])
    new_BN = np.ones(utility_BN.shape, bool)
    new_BN[named] = False
    out: dict[str, float] = {"n": len(where)}
    expected: dict[str, np.ndarray] = {}
    for row, model in models.items():
        scores_BN = ranking_scores(task, model, contexts, f"true utility, {row}").astype(np.float64)
        scores_BN[named] = -np.inf
        probability_BN = scipy.special.softmax(scores_BN / task.config.ppo.temperature, axis=1)
        expected[row] = (probability_BN * utility_BN).sum(1)
        out[f"utility_{row}"] = float(expected[row].mean())
        tokens_BR, _ = generate(
            task, model, contexts, task.config.ppo.temperature, task.config.seed + 23, f"proposals, {row}"
        )
        acts = [task.tokenizer.decode_reply(tokens, corpus.catalogue)[0] for tokens in tokens_BR]
        fresh = [[i for i in items if new_BN[b, i]] for b, items in enumerate(acts)]
        proposed = [utility_BN[b, items].mean() for b, items in enumerate(fresh) if items]
        out[f"proposed_{row}"] = float(np.mean(proposed)) if proposed else float("nan")
        out[f"recommends_{row}"] = len(proposed) / len(acts)
    spoken = [corpus.catalogue.rows(corpus.test[d].turns[t].distinct_items) for d, t in where]
    human = [utility_BN[b, [i for i in items if new_BN[b, i]]] for b, items in enumerate(spoken)]
    human = [values.mean() for values in human if len(values)]
    out |= {
        "utility_human": float(np.mean(human)),
        "utility_random": float(utility_BN[new_BN].mean()),
        "utility_best": float(np.where(new_BN, utility_BN, -1.0).max(1).mean()),
    }
    if {"sft", "ppo"} <= expected.keys():
        gap_B = expected["ppo"] - expected["sft"]
        means_R = resample(dialogue_B, task.config.evaluation.bootstrap, task.config.seed).means(gap_B[:, None])[:, 0]
        found = interval(float(gap_B.mean()), means_R)
        out |= {"difference": found["value"], "low": found["low"], "high": found["high"]}
    return out
