"""The reward stage: a copy of the SFT model learns to predict the seeker's reaction from context and reply.

Rows are packed dialogues as in SFT. The three heads are read at `<|say|>` (context and act) and at `<|end|>` (the whole
reply), both against the same standardised labels; a label that does not exist bears no loss. The members of an ensemble
(`training/ensemble.py`) step side by side, each as it would alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.packing import Rows
from crs_jax.data.windows import make_windows
from crs_jax.models.heads import SIGNALS
from crs_jax.rl.reward import RewardModel, mean_of, members, predict, together
from crs_jax.runtime.checkpoint import Checkpoints, digest
from crs_jax.runtime.compilation import Once
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.progress import say
from crs_jax.runtime.sharding import everywhere, in_parts, on_mesh, place, shard_batch
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.ensemble import Member, member
from crs_jax.training.labels import label, log_fingerprint
from crs_jax.training.optimizer import make_optimizer, reward_rates
from crs_jax.training.replies import Wishes, reply_arrays
from crs_jax.training.reward_loss import held_out_loss, label_counts, reward_loss
from crs_jax.training.sft import DeviceRows, epoch_seed, make_packer
from crs_jax.training.state import (
    Stopwatch,
    TrainState,
    accumulated_gradients,
    apply_gradients,
    fresh_state,
    keep_layout,
)
from crs_jax.training.supervised import Best, Supervised
from crs_jax.training.task import Task, copy_tree, split_model


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


def slot_labels(task: Task, rows: Rows, numbers: np.ndarray, signal_DTS: np.ndarray, wishes: Wishes) -> Rows:
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
        out[features] = wishes.features(dialogue, turn)
    return out


RIDGE = 10.0  # of the least squares, in replies


def least_squares(
    task: Task, numbers: np.ndarray, signal_DTS: np.ndarray, wishes: Wishes
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[len(FITS), 3]` of how acts fit, and biases `[3]`, that explain the labels of the dialogues best.

    Ridge regression on the standardised numbers; zero for what does not vary. A dialogue counts as often as it is
    named.
    """
    times = Counter(numbers.tolist())
    at = tuple(np.array([place for place in task.replies("train") for _ in range(times[place[0]])]).T)
    fit_PF, label_PS = wishes.features(*at).astype(np.float64), signal_DTS[at].astype(np.float64)
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


def first_params(task: Task, params: Any, one: Member, signal_DTS: np.ndarray, wishes: Wishes) -> Any:
    """A member's parameters before the first step: a copy of `params` with heads at least squares, on the mesh."""
    return place(with_heads(copy_tree(params), *least_squares(task, one.dialogues, signal_DTS, wishes)), task.mesh)


def make_step(graphdef: Any, optimizer: Any, task: Task):
    """Jitted (state, frozen, rows, key) -> (state, metrics)."""
    c, weight = task.config, task.config.reward.counterfactual

    def step(state: TrainState, frozen: Any, rows: DeviceRows, key: jax.Array):
        step_key, counts = jax.random.fold_in(key, state.step), label_counts(rows)

        def loss(params, micro: DeviceRows, number: jax.Array):
            model = nnx.merge(graphdef, params, frozen)
            return reward_loss(model, micro, c.data.window, jax.random.fold_in(step_key, number), counts, weight)

        each, grads = accumulated_gradients(loss, state.params, in_parts(rows, c.reward.accumulate, task.mesh))
        metrics = {name: value.sum() for name, value in each.items()}
        healthy = jnp.isfinite(metrics["loss"]) & ~state.halted
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, state.params, state.opt_state, healthy, state.step
        )
        halted = state.halted | ~made
        metrics |= {"grad_norm": norm, "halted": halted}
        new_state = TrainState(state.step + 1, params, opt_state, halted, state.extra)
        return keep_layout(new_state, task.mesh), metrics

    return Once("reward step", step, task.mesh, donate=0)


def predict_replies(
    task: Task, graphdef: Any, params: Any, frozen: Any, split: str, where: list[tuple[int, int]]
) -> np.ndarray:
    """Predicted signals `[n, 3]` at the end of human replies, from windowed prompts as PPO sees them; means over the
    members of an ensemble.
    """
    contexts = make_windows(task.config, task.encoded[split], where, task.tokenizer)
    tokens_BR, mask_BR = reply_arrays(task, split, where)

    def run(params, frozen, prompt, prompt_mask, tokens, mask, evidence):
        models = [nnx.merge(graphdef, own, frozen) for own in members(params)]
        reply = tokens[:, None], mask[:, None]
        return mean_of(jnp.stack([predict(model, prompt, prompt_mask, *reply, evidence)[1] for model in models]))

    if not where:
        return np.zeros((0, len(SIGNALS)), np.float32)
    evidence = Wishes(task, split).at(*np.array(where).T)
    predicted = jax.jit(on_mesh(run, task.mesh), out_shardings=everywhere(task.mesh))

    size = task.config.evaluation.batch
    out = []
    for start in range(0, len(where), size):
        index = np.minimum(np.arange(start, start + size), len(where) - 1)
        inputs = (contexts.tokens_BP, contexts.mask_BP, tokens_BR, mask_BR, evidence)
        batch = jax.tree.map(lambda a, index=index: a[index], inputs)
        out.append(np.asarray(predicted(params, frozen, *shard_batch(batch, task.mesh))))
    return np.concatenate(out)[: len(where)]


def run_reward(task: Task, writer: MetricsWriter, sft: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Trains or loads the reward model; returns its graphdef, params (lowest held-out loss) and frozen arrays.

    Of an ensemble the params are those of each member, `together`, and the graphdef is that of one.
    """
    c = task.config
    inputs, spent = {**task.made_from, "SFT model": digest(sft[1])}, Stopwatch()
    if c.signals.log:
        inputs["log"] = log_fingerprint(task)
    checkpoints = Checkpoints(task.workdir, "reward", c, inputs)
    graphdef, params, frozen = split_model(RewardModel(nnx.merge(*sft)))
    params, frozen = place(copy_tree(params), task.mesh), place(frozen, task.mesh)
    saved = checkpoints.latest()
    if saved is not None and saved.done:
        params = checkpoints.restore(saved.step, "result", together([params] * c.reward.ensemble))
        say(f"reward: done before, {saved.step} steps, held-out loss {np.mean(saved.best_loss):.4f}")
        checkpoints.close()
        return graphdef, params, frozen
    signal_DTS, wishes = label(task, "train").signal_DTS, Wishes(task, "train")
    fitted, held = split_holdout(task)
    team = [member(task, number, fitted, signal_DTS, wishes) for number in range(c.reward.ensemble)]
    per_epoch = len(team[0].packer.epoch(rows=c.sft.rows, crop=c.sft.crop, rng=epoch_seed(task, "reward", 0)))
    steps = max(round(c.reward.epochs * per_epoch), 1)
    optimizer = make_optimizer(reward_rates(c), 0.05, steps, c.reward.clip_norm)
    states = [fresh_state(first_params(task, params, one, signal_DTS, wishes), optimizer, task.mesh) for one in team]
    best = Best.of([copy_tree(state.params) for state in states])
    if saved is not None:
        best = best.restored(checkpoints, saved)
        states = members(checkpoints.restore(saved.step, "state", together(states)))
    reward_rates(c).show("reward", params)
    first = 0 if saved is None else saved.step
    writer.drop_after("reward", first)
    step = functools.cache(lambda beside: make_step(graphdef, optimizer, task))  # a program with others and one without

    def with_labels(rows: Rows, numbers: np.ndarray, beside: Counterfactuals | None, step: int) -> Rows:
        rows = slot_labels(task, rows, numbers, signal_DTS, wishes)
        return rows | beside.draw(len(rows["tokens_RT"]), step) if beside is not None and beside.where else rows

    held_others = Counterfactuals(task, held, signal_DTS, wishes) if c.reward.counterfactual else None
    held_rows = with_labels(make_packer(task, "train", held).pack(), held, held_others, HELD)

    def labelled(number: int, given: tuple[tuple[int, Rows], ...]) -> list[Rows]:
        each = zip(given, team, strict=True)
        return [with_labels(rows, one.dialogues, one.others, number) for (_, rows), one in each]

    def stepped(m: int, state: TrainState, rows: Rows) -> tuple[TrainState, dict[str, Any]]:
        return step("other_label_RG" in rows)(state, frozen, shard_batch(rows, task.mesh), team[m].key)

    stage = Supervised(
        stage="reward", label="reward model", task=task, writer=writer, checkpoints=checkpoints, steps=steps,
        look=max(per_epoch // 2, 1), batch=labelled, step=stepped,
        validate=held_out_loss(task, graphdef, frozen, held_rows),
    )  # fmt: skip
    given = zip(*(one.batches(task) for one in team), strict=True)
    return graphdef, together(stage.run(states, best, given, first, lambda: spent.since(saved))), frozen
