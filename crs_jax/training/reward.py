"""The reward stage: a copy of the SFT model learns to predict the seeker's reaction from context and reply.

Rows are packed dialogues as in SFT. The three heads are read at `<|say|>` (context and act) and at `<|end|>` (the whole
reply), both against the same standardised labels; a label that does not exist bears no loss. The members of an ensemble
(`training/ensemble.py`) step side by side, each as it would alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.packing import Rows
from crs_jax.evaluation.policies import run_batched
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.features import SplitFeatures, of_split
from crs_jax.inputs.labels import label, log_fingerprint
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import Task, copy_tree, split_model
from crs_jax.rl.reward import RewardModel, mean_of, members, predict, stack
from crs_jax.runtime.checkpoint import digest
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import everywhere, on_mesh, place, shard_batch
from crs_jax.signals.registry import SIGNALS
from crs_jax.training import loop
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.ensemble import Member, member
from crs_jax.training.optimizer import make_optimizer, reward_rates
from crs_jax.training.reward_loss import held_out_loss, label_counts, reward_loss
from crs_jax.training.sft import DeviceRows, epoch_seed, make_packer
from crs_jax.training.state import fresh_state


def split_holdout(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training dialogues the reward model is fitted on, and of those held out, cut by the seed.

    Of dialogues with a reply alone; `InputError` where fewer than two have one.
    """
    with_reply = np.unique([d for d, _ in task.replies("train")])
    count = len(with_reply)
    if count < 2:
        raise InputError(f"{task.corpus.name}: {count} training dialogue(s) with a reply; the reward stage needs two")
    order = np.random.default_rng([task.config.seed, 7]).permutation(with_reply)
    held = max(round(task.config.reward.holdout * count), 1)
    return np.sort(order[held:]), np.sort(order[:held])


HELD = 1_000_000_000  # number of the draw of copies that is held out


def slot_labels(
    task: Task, rows: Rows, numbers: np.ndarray, signal_DTS: np.ndarray, split_features: SplitFeatures
) -> Rows:
    """The rows with the labels and features of the slots whose target is `<|say|>` or `<|end|>`; labels NaN elsewhere.

    `numbers` are the dialogues the packer had.
    """
    out = dict(rows)
    for at, target, mask, stop, labels, features in (
        ("act_at_RA", "act_target_RA", "act_mask_RA", task.layout.num_items, "say_label_RAS", "say_features_RAF"),
        ("word_at_RW", "word_target_RW", "word_mask_RW", task.layout.end, "end_label_RWS", "end_features_RWF"),
    ):
        dialogue = numbers[np.take_along_axis(rows["dialogue_RT"], rows[at], 1)]
        turn = np.take_along_axis(rows["utterance_RT"], rows[at], 1)
        here = rows[mask] & (rows[target] == stop)
        out[labels] = np.where(here[..., None], signal_DTS[dialogue, turn], np.nan).astype(np.float32)
        out[features] = split_features.matches(dialogue, turn)
    return out


RIDGE = 10.0  # of the least squares, in replies


def least_squares(
    task: Task, numbers: np.ndarray, signal_DTS: np.ndarray, split_features: SplitFeatures
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[len(MATCH_FEATURES), 3]` and biases `[3]` that explain the labels of the dialogues best.

    Ridge regression on the standardised numbers; zero for what does not vary. A dialogue counts as often as it is
    named.
    """
    times = Counter(numbers.tolist())
    at = tuple(np.array([place for place in task.replies("train") for _ in range(times[place[0]])]).T)
    fit_PF, label_PS = split_features.matches(*at).astype(np.float64), signal_DTS[at].astype(np.float64)
    kernel_FS, bias_S = np.zeros((fit_PF.shape[1], len(SIGNALS))), np.zeros(len(SIGNALS))
    for s in range(len(SIGNALS)):
        known = np.isfinite(label_PS[:, s])
        if not known.any():
            continue
        mean_F, std_F, mean = fit_PF[known].mean(0), fit_PF[known].std(0), label_PS[known, s].mean()
        scale_F = np.where(std_F > 1e-6, 1.0 / np.maximum(std_F, 1e-6), 0.0)
        x_PF = (fit_PF[known] - mean_F) * scale_F
        gram_FF = x_PF.T @ x_PF + RIDGE * np.eye(len(scale_F))
        kernel_FS[:, s] = scale_F * np.linalg.solve(gram_FF, x_PF.T @ (label_PS[known, s] - mean))
        bias_S[s] = mean - mean_F @ kernel_FS[:, s]
    return kernel_FS.astype(np.float32), bias_S.astype(np.float32)


def with_heads(params: Any, kernel_FS: np.ndarray, bias_S: np.ndarray) -> Any:
    """The reward model's parameters with those weights of the fit and biases."""
    heads = {**params["heads"], "feature_kernel": jnp.asarray(kernel_FS), "bias": jnp.asarray(bias_S)}
    return {**params, "heads": heads}


def first_params(task: Task, params: Any, one: Member, signal_DTS: np.ndarray, split_features: SplitFeatures) -> Any:
    """A member's parameters before the first step: a copy of `params` with heads at least squares, on the mesh."""
    return place(
        with_heads(copy_tree(params), *least_squares(task, one.dialogues, signal_DTS, split_features)), task.mesh
    )


def make_step(graphdef: Any, optimizer: Any, task: Task) -> CompiledOnce:
    """Jitted (state, frozen, rows, key) -> (state, metrics)."""
    c, weight = task.config, task.config.reward.counterfactual

    def loss(params, frozen, rows: DeviceRows, key: jax.Array, counts: dict[str, jax.Array]):
        return reward_loss(nnx.merge(graphdef, params, frozen), rows, c.data.window, key, counts, weight)

    return loop.make_step("reward step", loss, label_counts, optimizer, task.mesh, c.reward.accumulate)


def predict_replies(
    task: Task, graphdef: Any, params: Any, frozen: Any, split: str, where: list[tuple[int, int]]
) -> np.ndarray:
    """Predicted signals `[n, 3]` at the end of human replies, from windowed prompts as PPO sees them; means over the
    members of an ensemble.
    """
    if not where:
        return np.zeros((0, len(SIGNALS)), np.float32)

    def run(params, frozen, contexts, tokens_BR, mask_BR):
        models = [nnx.merge(graphdef, own, frozen) for own in members(params)]
        given = contexts.prompt_CP, contexts.mask_CP, tokens_BR[:, None], mask_BR[:, None], contexts.features
        return mean_of(jnp.stack([predict(model, *given)[1] for model in models]))

    program = jax.jit(on_mesh(run, task.mesh), out_shardings=everywhere(task.mesh))
    inputs = contexts_at(task, split, where), *reply_arrays(task, split, where)
    return run_batched(task, lambda batch: program(params, frozen, *batch), len(where), inputs, "")


class RewardStage(loop.FittedStage):
    """Packed dialogues with labels, for each member its own; validation on held-out dialogues twice an epoch."""

    name, label = "reward", "reward model"

    def __init__(self, task: Task, writer: MetricsWriter, graphdef: Any, frozen: Any):
        c = task.config
        self.task, self.writer, self.log_every, self._frozen = task, writer, c.log_every, frozen
        self._signal_DTS, self._split_features = label(task, "train").signal_DTS, of_split(task, "train")
        fitted, held = split_holdout(task)
        labels = fitted, self._signal_DTS, self._split_features
        self.team = [member(task, number, *labels) for number in range(c.reward.ensemble)]
        per_epoch = len(self.team[0].packer.epoch(rows=c.sft.rows, crop=c.sft.crop, rng=epoch_seed(task, "reward", 0)))
        self.steps, self.eval_every = max(round(c.reward.epochs * per_epoch), 1), max(per_epoch // 2, 1)
        self.optimizer = make_optimizer(reward_rates(c), 0.05, self.steps, c.reward.clip_norm)
        others = (
            Counterfactuals(task, held, self._signal_DTS, self._split_features) if c.reward.counterfactual else None
        )
        held_rows = self._labelled(make_packer(task, "train", held).pack(), held, others, HELD)
        self._held_out = held_out_loss(task, graphdef, frozen, held_rows)
        self._step = functools.cache(lambda beside: make_step(graphdef, self.optimizer, task))

    def start(self, params: Any) -> Any:
        """The members' states before the first step."""
        first = (first_params(self.task, params, one, self._signal_DTS, self._split_features) for one in self.team)
        return stack([fresh_state(own, self.optimizer, self.task.mesh) for own in first])

    def batches(self, first: int) -> Iterator[Any]:
        """Of each member, packed rows with labels, and replies that nobody made beside them."""
        each = zip(*(one.batches(self.task) for one in self.team), strict=True)
        for number, given in enumerate(loop.after(each, first), first + 1):
            pairs = zip(given, self.team, strict=True)
            yield stack([self._labelled(rows, one.dialogues, one.others, number) for (_, rows), one in pairs])

    def step(self, number: int, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """One update of each member."""
        stepped = [
            self._step("other_label_RG" in rows)(own, self._frozen, shard_batch(rows, self.task.mesh), one.key)
            for one, own, rows in zip(self.team, members(state), members(batch), strict=True)
        ]
        metrics = [own for _, own in stepped]
        return stack([own for own, _ in stepped]), {name: [own[name] for own in metrics] for name in metrics[0]}

    def scores(self, params: Any) -> dict[str, float]:
        """Of held-out dialogues."""
        return self._held_out(params)

    def _labelled(self, rows: Rows, numbers: np.ndarray, beside: Counterfactuals | None, step: int) -> Rows:
        rows = slot_labels(self.task, rows, numbers, self._signal_DTS, self._split_features)
        return rows | beside.draw(len(rows["tokens_RT"]), step) if beside is not None and beside.where else rows


def run_reward(task: Task, writer: MetricsWriter, sft: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Trains or loads the reward model; returns its graphdef, params (lowest held-out loss) and frozen arrays.

    Of an ensemble the params are those of each member, `stack`, and the graphdef is that of one.
    """
    c, inputs = task.config, {**task.made_from, "SFT model": digest(sft[1])}
    if c.signals.log:
        inputs["log"] = log_fingerprint(task)
    resumed = loop.Resumed.of(task, "reward", inputs)
    graphdef, params, frozen = split_model(RewardModel(nnx.merge(*sft)))
    params, frozen = place(copy_tree(params), task.mesh), place(frozen, task.mesh)
    if resumed.done:
        kept = resumed.kept(loop.unmeasured([params] * c.reward.ensemble))
        resumed.close(f"reward: done before, {resumed.first} steps, held-out loss {np.mean(kept.best_loss):.4f}")
        return graphdef, kept.result, frozen
    stage = RewardStage(task, writer, graphdef, frozen)
    state = stage.start(params)
    kept = resumed.kept(loop.unmeasured([copy_tree(own.params) for own in members(state)]))
    reward_rates(c).show("reward", params)
    writer.drop_after("reward", resumed.first)
    return graphdef, loop.train(stage, resumed, resumed.state(state), kept).result, frozen
