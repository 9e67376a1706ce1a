"""Sample dialogues: the context, what the human said, and what each policy says, with its ranking and rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from crs_jax.evaluation.policies import Judged, ranking_scores
from crs_jax.inputs.task import Task
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import Model
from crs_jax.signals.registry import rewards


def sample_lines(
    task: Task,
    where: list[tuple[int, int]],
    contexts: Contexts,
    models: dict[str, Model],
    greedy: dict[str, np.ndarray],
    judged: dict[str, Judged],
) -> list[dict[str, Any]]:
    """One record a context, as `samples.jsonl` holds it.

    Where replies were judged, `text` is the sampled reply that the rewards are of (at `config.ppo.temperature`) and
    `greedy` the one of the text metrics; elsewhere `text` is the greedy one. `chances` are the probabilities of the
    items `top` among all items, where the policy recommends.
    """
    catalogue = task.corpus.catalogue
    top, chance = {}, {}
    if where:
        for row, model in models.items():
            scores_IN = ranking_scores(task, model, contexts, f"samples' rankings, {row}")
            top[row] = np.argsort(-scores_IN, axis=1, kind="stable")[:, :5]
            chance[row] = np.take_along_axis(softmax(scores_IN.astype(np.float64), 1), top[row], 1)
    lines = []
    for n, (d, t) in enumerate(where):
        dialogue = task.corpus.test[d]
        turn = dialogue.turns[t]
        line: dict[str, Any] = {
            "dialogue_id": dialogue.dialogue_id,
            "turn": t,
            "context": [
                {"role": before.role, "text": before.render(catalogue.names)}
                for before in dialogue.turns[max(0, t - task.config.data.window) : t]
            ],
            "human": {
                "text": turn.render(catalogue.names),
                "items": [catalogue.names[item] for item in turn.distinct_items],
            },
        }
        for row in models:
            items, text = task.tokenizer.decode_reply(greedy[row][n], catalogue)
            line[row] = {
                "top": [catalogue.items[i].name for i in top[row][n]],
                "chances": chance[row][n].round(6),
                "text": text,
                "items": [catalogue.items[i].name for i in items],
            }
            if row in judged:
                j = judged[row]
                items, text = task.tokenizer.decode_reply(j.tokens_BR[n][j.mask_BR[n]], catalogue)
                line[row] |= {
                    "greedy": line[row]["text"],
                    "text": text,
                    "items": [catalogue.items[i].name for i in items],
                    "reward": float(j.reward_B[n]),
                }
                for s, name in enumerate(rewards()[: j.signal_BS.shape[1]]):
                    value = float(j.signal_BS[n, s])
                    line[row][name] = value if np.isfinite(value) else None
        lines.append(line)
    return lines
