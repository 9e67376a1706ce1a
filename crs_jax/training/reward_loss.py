"""The reward model's loss, and the same pooled over all that is held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crs_jax.data.packing import Rows
from crs_jax.inputs.task import Task
from crs_jax.rl.ppo import masked_mean
from crs_jax.rl.reward import RewardModel, read_heads
from crs_jax.rl.scoring import token_masks, tree_hidden
from crs_jax.runtime.sharding import on_mesh, shard_batch
from crs_jax.signals.registry import SIGNALS, column
from crs_jax.training.sft import DeviceRows, at_slots, packed_hidden

READ_AT = (
    ("act_at_RA", "say_label_RAS", "say_features_RAF"),
    ("word_at_RW", "end_label_RWS", "end_features_RWF"),
)
"""Slots that the heads are read after, with the keys of their labels and features."""
LABELS = {*(labels for _, labels, _ in READ_AT), "other_label_RG"}
"""Keys of labels; NaN where there is none."""


def label_counts(rows: DeviceRows | Rows) -> dict[str, jax.Array]:
    """How many labels of each signal there are, `[S]`, at `<|say|>` and at `<|end|>`, and replies beside the rows."""
    counts = {labels: jnp.isfinite(rows[labels]).sum((0, 1)) for _, labels, _ in READ_AT}
    return counts | ({"others": jnp.isfinite(rows["other_label_RG"]).sum()} if "other_label_RG" in rows else {})


def reward_loss(
    model: RewardModel,
    rows: DeviceRows,
    window: int,
    key: jax.Array | None,
    counts: dict[str, jax.Array] | None = None,
    counterfactual: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error over the labels that exist, signals weighing alike, `<|say|>` and `<|end|>` alike.

    `rows` are packed rows with `slot_labels`. Of a micro-batch, with the `label_counts` of the whole batch: its share
    of the means. Where the rows hold replies with their copies (`training/counterfactual.py`), `counterfactual` times
    their loss is added.
    """
    counts = label_counts(rows) if counts is None else counts
    policy = model.policy
    hidden_RTD = packed_hidden(policy, policy.tables(), rows, window, key)
    metrics: dict[str, jax.Array] = {}
    loss = jnp.float32(0)
    last = rows["tokens_RT"].shape[1] - 1
    for where, labels, features in READ_AT:
        label_RXS = rows[labels]
        read = model.heads(at_slots(hidden_RTD, jnp.minimum(rows[where] + 1, last)), rows[features])
        for s, name in enumerate(SIGNALS):
            known = jnp.isfinite(label_RXS[..., s])
            error = masked_mean(
                jnp.square(read[..., s] - jnp.where(known, label_RXS[..., s], 0.0)), known, counts[labels][s]
            )
            metrics[f"{name}_loss"] = metrics.get(f"{name}_loss", 0.0) + 0.5 * error
            loss = loss + 0.5 * error / len(SIGNALS)
    if "other_tokens_RGL" in rows:
        added, found = counterfactual_loss(model, rows, key, counts["others"])
        metrics |= found
        loss = loss + counterfactual * added
    return loss, {"loss": loss, **metrics}


def counterfactual_loss(
    model: RewardModel, rows: DeviceRows, key: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of engagement over logged replies and their copies, `<|say|>` and `<|end|>` alike.

    `count` is the number of replies in the whole batch; a group without labels bears no loss. Also `real_over_other`:
    how much higher logged replies read than their copies at `<|say|>`, in standard deviations of the label.
    """
    tokens, real, policy = rows["other_tokens_RGL"], rows["other_real_RGL"], model.policy
    R, G, L = tokens.shape
    prompt = rows["other_prompt_RP"], rows["other_mask_RP"]
    other_key = None if key is None else jax.random.fold_in(key, 1)
    hidden = tree_hidden(policy, policy.tables(), *prompt, tokens, real, other_key)
    masks = token_masks(tokens.reshape(R * G, L), real.reshape(R * G, L), policy.layout)
    both = read_heads(model.heads, hidden, masks, rows["other_features_RGF"].reshape(R * G, -1))
    read = [values_BS[:, column("engagement")].reshape(R, G) for values_BS in both]
    known_RG = jnp.isfinite(rows["other_label_RG"])
    label_RG = jnp.where(known_RG, rows["other_label_RG"], 0.0)
    at_say, at_end = (masked_mean(jnp.square(read_RG - label_RG), known_RG, count) for read_RG in read)
    error = 0.5 * (at_say + at_end)
    gap = masked_mean(read[0][:, 0] - read[0][:, 1:].mean(1), known_RG[:, 0], count / G)
    return error, {"counterfactual_loss": error, "real_over_other": gap}


def held_out_loss(task: Task, graphdef: Any, frozen: Any, rows: Rows) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: the metrics of `reward_loss` on all rows, each a mean over all their labels.

    Rows come in batches of `config.sft.rows`, each of which gives its share of these means.
    """
    c, size, total = task.config, task.config.sft.rows, len(rows["tokens_RT"])
    counts, index = jax.tree.map(np.asarray, label_counts(rows)), np.arange(-(-total // size) * size)
    padded = {name: array[np.minimum(index, total - 1)] for name, array in rows.items()}
    for name in LABELS & padded.keys():
        padded[name][total:] = np.nan

    def share(params: Any, frozen: Any, batch: DeviceRows, counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, params, frozen)
        return reward_loss(model, batch, c.data.window, None, counts, c.reward.counterfactual)[1]

    run = jax.jit(on_mesh(share, task.mesh))

    def loss(params: Any) -> dict[str, float]:
        totals: dict[str, float] = {}
        for start in range(0, len(index), size):
            batch = {name: array[start : start + size] for name, array in padded.items()}
            for name, value in run(params, frozen, shard_batch(batch, task.mesh), counts).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    return loss
