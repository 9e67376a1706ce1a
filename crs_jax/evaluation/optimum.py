"""The best that a reward and a KL allow: the SFT policy's acts tilted by the reward model, beside what PPO reached.

The optimum of E[R] - beta KL(pi || pi_ref) is pi_ref(a) exp(R(a) / beta), up to its norm. Over the first token of an
act (an item, or `<|say|>`: no proposal) it can be computed: R(a) is what the reward model says at `<|say|>` of the act
with that item alone. beta is chosen so that its KL is PPO's own, so the row tells a weak reward from a weak optimiser.
What PPO earns with the words after the act is not in it: where the two reads of the reward model disagree on items, PPO
goes elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from crs_jax.evaluation.bootstrap import interval, resample
from crs_jax.evaluation.policies import run_batched
from crs_jax.models.policy import Layout
from crs_jax.sharding import everywhere, on_mesh
from crs_jax.training.contexts import Contexts
from crs_jax.training.judging import Graphs, act_scores
from crs_jax.training.passes import first_of
from crs_jax.training.ppo_stage import Aligned, Model
from crs_jax.training.task import Task

STEEPEST = 1e3  # largest 1 / beta that is tried


class Tilted(NamedTuple):
    """Of each context, leading axis I.

    Attributes:
      logp_IA: log-probabilities of the acts under the tilted policy.
      gain_IA: what was added to their logits, 1 / beta times the reward less its mean under the reference.
      kl_I: KL to the reference, nats.
      reward_I: expected reward; acts that were not scored count as the reference's mean.
    """

    logp_IA: np.ndarray
    gain_IA: np.ndarray
    kl_I: np.ndarray
    reward_I: np.ndarray


def expected(p_IA: np.ndarray, reward_IA: np.ndarray, mean_I: np.ndarray) -> np.ndarray:
    """Expected reward of each context; what mass the acts leave earns `mean_I`."""
    return (p_IA * reward_IA).sum(1) + np.maximum(1.0 - p_IA.sum(1), 0.0) * mean_I


def tilt(logp_IA: np.ndarray, reward_IA: np.ndarray, slope: float) -> Tilted:
    """The reference tilted by `slope` = 1 / beta times the reward, over acts that may leave some mass unscored.

    Args:
      logp_IA: log-probabilities of the scored acts under the reference; they sum to 1 at most.
      reward_IA: their rewards.
      slope: at least 0.
    """
    p_IA = np.exp(logp_IA)
    mass_I = np.minimum(p_IA.sum(1), 1.0)
    mean_I = (p_IA * reward_IA).sum(1) / mass_I
    gain_IA = slope * (reward_IA - mean_I[:, None])
    top_I = np.maximum(gain_IA.max(1), 0.0)
    norm_I = top_I + np.log((1.0 - mass_I) * np.exp(-top_I) + (p_IA * np.exp(gain_IA - top_I[:, None])).sum(1))
    logq_IA = logp_IA + gain_IA - norm_I[:, None]
    q_IA = np.exp(logq_IA)
    kl_I = (q_IA * gain_IA).sum(1) - norm_I
    return Tilted(logq_IA, gain_IA, kl_I, expected(q_IA, reward_IA, mean_I))


def slope_of(logp_IA: np.ndarray, reward_IA: np.ndarray, kl: float) -> float:
    """The slope whose mean KL is `kl` (it grows with the slope), at most `STEEPEST`; 0 for a `kl` of 0 or less."""
    low, high = 0.0, STEEPEST
    if kl <= 0 or tilt(logp_IA, reward_IA, high).kl_I.mean() < kl:
        return low if kl <= 0 else high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt(logp_IA, reward_IA, middle).kl_I.mean() < kl else (low, middle)
    return (low + high) / 2


@functools.cache
def _first_token(graphdef: Any, mesh: Mesh, temperature: float):
    def run(params, frozen, contexts: Contexts):
        return first_of(graphdef, params, frozen, contexts, temperature)

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


def first_token(task: Task, model: Model, contexts: Contexts, label: str) -> np.ndarray:
    """Log-probabilities of an act's first token, `[I, N + 1]`: the items, and `<|say|>` last."""
    graphdef, params, frozen = model
    run = _first_token(graphdef, task.mesh, task.config.ppo.temperature)
    return run_batched(task, lambda c: run(params, frozen, c), len(contexts.prompt_CP), contexts, label)


@functools.cache
def _act_rewards(graphs: Graphs, mesh: Mesh, layout: Layout, exact: bool, clip: float):
    def run(judges, normaliser, contexts, row_IA):
        return act_scores(graphs, judges, normaliser, contexts, row_IA, layout, exact, clip)

    return jax.jit(on_mesh(run, mesh), out_shardings=everywhere(mesh))


def act_rewards(task: Task, aligned: Aligned, contexts: Contexts, row_IA: np.ndarray) -> np.ndarray:
    """Rewards `[I, A]` at `<|say|>` of acts with one item each; the row N is the act without any."""
    c = task.config.reward
    run = _act_rewards(aligned.graphs, task.mesh, task.layout, c.relevance == "exact", c.clip)
    return run_batched(
        task,
        lambda batch: run(aligned.judges, aligned.normaliser, *batch),
        len(row_IA),
        (contexts, row_IA),
        "rewards of acts",
    )


def optimum(
    task: Task, aligned: Aligned, models: dict[str, Model], contexts: Contexts, group_I: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores `[I, N]` of the tilted policy and of the SFT policy re-ranked by the reward, and how far PPO went.

    Scored are the `config.evaluation.optimum_acts` items that are likeliest under the likelier of the two policies, and
    the act without any.

    Args:
      task: the data.
      aligned: what scores replies.
      models: `sft` and `ppo`.
      contexts: of the instances.
      group_I: their dialogues, resampled for the intervals.

    Returns:
      The scores of the rows `optimum` and `rerank` (the scored items in the order of their rewards, the others behind
      them as they were; PPO's likeliest are among the scored), and: `kl` of PPO's first token, `beta`, `share` = (PPO's
      expected reward less SFT's) / (the optimum's less SFT's), the three expected rewards, and how much of the two
      policies' mass was scored (`mass-sft`, `mass-ppo`). Without a KL or a gain to go for, `share` is NaN.
    """
    reference, learned = (first_token(task, models[row], contexts, f"first token, {row}") for row in ("sft", "ppo"))
    N, kl_I = task.layout.num_items, (np.exp(learned) * (learned - reference)).sum(1, dtype=np.float64)
    acts = min(task.config.evaluation.optimum_acts, N)
    top_IA = np.argpartition(-np.maximum(reference, learned)[:, :N], acts - 1, axis=1)[:, :acts]
    row_IA = np.concatenate([top_IA, np.full((len(top_IA), 1), N)], 1).astype(np.int32)
    reward_IA = act_rewards(task, aligned, contexts, row_IA).astype(np.float64)
    logp_IA, learned_IA = (np.take_along_axis(a, row_IA, 1).astype(np.float64) for a in (reference, learned))
    slope = slope_of(logp_IA, reward_IA, float(kl_I.mean()))
    best, none = tilt(logp_IA, reward_IA, slope), tilt(logp_IA, reward_IA, 0.0)
    scores_IN = reference[:, :N].copy()
    np.put_along_axis(
        scores_IN, top_IA, (np.take_along_axis(reference, top_IA, 1) + best.gain_IA[:, :-1]).astype(np.float32), 1
    )
    reranked_IN = reference[:, :N] - reference[:, :N].max() + reward_IA[:, :-1].min() - 1.0
    np.put_along_axis(reranked_IN, top_IA, reward_IA[:, :-1].astype(np.float32), 1)
    q_IA = np.exp(learned_IA)
    ppo_I = expected(q_IA, reward_IA, none.reward_I)
    rewards = np.stack([none.reward_I, ppo_I, best.reward_I], 1)
    means_RM = resample(group_I, task.config.evaluation.bootstrap, task.config.seed).means(rewards)

    def share(mean_M: np.ndarray) -> Any:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (mean_M[..., 1] - mean_M[..., 0]) / (mean_M[..., 2] - mean_M[..., 0])

    gain = slope > 0 and rewards[:, 2].mean() - rewards[:, 0].mean() > 1e-9
    nothing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    facts: dict[str, Any] = {
        "kl": float(kl_I.mean()),
        "kl-optimum": float(best.kl_I.mean()),
        "beta": 1.0 / slope if slope else float("inf"),
        "share": interval(share(rewards.mean(0)), share(means_RM)) if gain else nothing,
        "acts": acts,
        "mass-sft": float(np.exp(logp_IA).sum(1).mean()),
        "mass-ppo": float(q_IA.sum(1).mean()),
    }
    for m, row in enumerate(("sft", "ppo", "optimum")):
        facts[f"reward-{row}"] = interval(rewards[:, m].mean(), means_RM[:, m])
    return {"optimum": scores_IN, "rerank": reranked_IN}, facts
