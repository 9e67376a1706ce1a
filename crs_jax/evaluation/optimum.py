"""The best that a reward and a KL allow: the SFT policy's items tilted by the reward model, beside what PPO reached.

The optimum of E[R] - beta KL(pi || pi_ref) is pi_ref(i) exp(R(i) / beta), up to its norm. Over the first item of a
slate, given that one is proposed, it can be computed: R(i) is what the reward model says at `<|say|>` of the slate with
that item alone. beta is chosen so that its KL is PPO's own, so the row tells a weak reward from a weak optimiser.
Whether to propose is not in it: that has a KL coefficient of its own. What PPO earns with the words after the slate is
not in it either: where the two reads of the reward model disagree on items, PPO goes elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.policies import run_batched
from crs_jax.evaluation.tilting import Tilted, expected, slope_of, tilt
from crs_jax.inputs.task import Task
from crs_jax.models.layout import Layout
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import first_of
from crs_jax.rl.frozen_models import Aligned, FrozenModels, Graphs, Model, act_scores
from crs_jax.rl.reward import Normaliser
from crs_jax.runtime.sharding import everywhere, on_mesh


@functools.cache
def _first_item(graphdef: Any, mesh: Mesh, temperature: float):
    def run(params, frozen, contexts: Contexts):
        return first_of(graphdef, params, frozen, contexts, temperature).item_CN

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


def first_item(task: Task, model: Model, contexts: Contexts, label: str) -> np.ndarray:
    """Log-probabilities of a slate's first item, given that one is proposed, `[I, N]`."""
    graphdef, params, frozen = model
    run = _first_item(graphdef, task.mesh, task.config.ppo.temperature)
    return run_batched(task, lambda c: run(params, frozen, c), len(contexts.prompt_CP), contexts, label)


@functools.cache
def _item_rewards(graphs: Graphs, mesh: Mesh, layout: Layout, exact: bool, clip: float):
    def run(frozen_models, normaliser, contexts, row_IA):
        return act_scores(graphs, frozen_models, normaliser, contexts, row_IA, layout, exact, clip)[0]

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


def item_rewards(
    task: Task, graphs: Graphs, frozen_models: FrozenModels, normaliser: Normaliser, contexts: Contexts,
    row_IA: np.ndarray, label: str = "rewards of items",
) -> np.ndarray:  # fmt: skip
    """Rewards `[I, A]` at `<|say|>` of slates with one item each, float64."""
    c = task.config.reward
    run = _item_rewards(graphs, task.mesh, task.layout, c.relevance == "exact", c.clip)
    inputs = contexts, row_IA
    return run_batched(task, lambda b: run(frozen_models, normaliser, *b), len(row_IA), inputs, label).astype(
        np.float64
    )


class Way(NamedTuple):
    """How far a policy went from the SFT policy to the optimum at its own KL, over I contexts.

    Attributes:
      row_IA: the items that were scored, likeliest under the likelier of the two policies.
      reward_IA: their rewards.
      best: the optimum over them.
      earned_I4: expected rewards of SFT, of the policy, of the optimum, and of the best item alone (`rerank`).
      kl: of the policy's items, nats, mean over contexts.
      slope: 1 / beta.
      mass: of SFT's and of the policy's items that were scored.
    """

    row_IA: np.ndarray
    reward_IA: np.ndarray
    best: Tilted
    earned_I4: np.ndarray
    kl: float
    slope: float
    mass: tuple[float, float]

    @property
    def share(self) -> float:
        """(The policy's reward less SFT's) / (the optimum's less SFT's); NaN without a gain to go for."""
        sft, own, best, _ = self.earned_I4.mean(0)
        return float((own - sft) / (best - sft)) if self.slope > 0 and best - sft > 1e-9 else float("nan")


def way_of(
    reference_IN: np.ndarray, learned_IN: np.ndarray, acts: int, rewards: Callable[[np.ndarray], np.ndarray]
) -> Way:
    """From log-probabilities of first items under SFT and under a policy.

    `rewards` gives those `[I, A]` of rows `[I, A]` of items, A = `acts` or all.
    """
    kl = float((np.exp(learned_IN) * (learned_IN - reference_IN)).sum(1, dtype=np.float64).mean())
    acts = min(acts, reference_IN.shape[1])
    row_IA = np.argpartition(-np.maximum(reference_IN, learned_IN), acts - 1, axis=1)[:, :acts].astype(np.int32)
    reward_IA = rewards(row_IA)
    logp_IA, own_IA = (np.take_along_axis(a, row_IA, 1).astype(np.float64) for a in (reference_IN, learned_IN))
    slope = slope_of(logp_IA, reward_IA, kl)
    best, none = tilt(logp_IA, reward_IA, slope), tilt(logp_IA, reward_IA, 0.0)
    own_I = expected(np.exp(own_IA), reward_IA, none.reward_I)
    earned_I4 = np.stack([none.reward_I, own_I, best.reward_I, reward_IA.max(1)], 1)
    mass = (float(np.exp(logp_IA).sum(1).mean()), float(np.exp(own_IA).sum(1).mean()))
    return Way(row_IA, reward_IA, best, earned_I4, kl, slope, mass)


def optimum(
    task: Task, aligned: Aligned, models: dict[str, Model], contexts: Contexts, group_I: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores `[I, N]` of the tilted policy and of the SFT policy re-ranked by the reward, and how far PPO went.

    Scored are the `config.evaluation.optimum_acts` items that are likeliest under the likelier of the two policies.

    Args:
      task: the data.
      aligned: what scores replies.
      models: `sft` and `ppo`.
      contexts: of the instances.
      group_I: their dialogues, resampled for the intervals.

    Returns:
      The scores of the rows `optimum` and `rerank` (the scored items in the order of their rewards, the others behind
      them as they were; PPO's likeliest are among the scored), and: `kl` of PPO's first item, `beta`, `share`
      (`Way.share`), the four expected rewards, and how much of the two policies' mass was scored (`mass-sft`,
      `mass-ppo`). Without a KL or a gain to go for, `share` is NaN.
    """
    reference, learned = (first_item(task, models[row], contexts, f"first item, {row}") for row in ("sft", "ppo"))
    judged = aligned.graphs, aligned.frozen_models, aligned.normaliser
    way = way_of(
        reference, learned, task.config.evaluation.optimum_acts,
        lambda row_IA: item_rewards(task, *judged, contexts, row_IA),
    )  # fmt: skip
    scores_IN = reference.copy()
    tilted_IA = np.take_along_axis(reference, way.row_IA, 1) + way.best.gain_IA
    np.put_along_axis(scores_IN, way.row_IA, tilted_IA.astype(np.float32), 1)
    reranked_IN = reference - reference.max() + way.reward_IA.min() - 1.0
    np.put_along_axis(reranked_IN, way.row_IA, way.reward_IA.astype(np.float32), 1)
    means_RM = resample(group_I, task.config.evaluation.bootstrap, task.config.seed).means(way.earned_I4)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_R = (means_RM[:, 1] - means_RM[:, 0]) / (means_RM[:, 2] - means_RM[:, 0])
    nothing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    facts: dict[str, Any] = {
        "kl": way.kl,
        "kl-optimum": float(way.best.kl_I.mean()),
        "beta": 1.0 / way.slope if way.slope else float("inf"),
        "share": nothing if np.isnan(way.share) else interval(way.share, share_R),
        "acts": way.row_IA.shape[1],
        "mass-sft": way.mass[0],
        "mass-ppo": way.mass[1],
    }
    for m, row in enumerate(("sft", "ppo", "optimum", "rerank")):
        facts[f"reward-{row}"] = interval(way.earned_I4[:, m].mean(), means_RM[:, m])
    return {"optimum": scores_IN, "rerank": reranked_IN}, facts
