"""AdamW with warm-up, linear decay and a clipped gradient norm: one recipe for the three stages."""

from __future__ import annotations

from typing import Any

import jax
import optax

from crs_jax.sharding import path_name

DECAYED = ("kernel", "words", "projection", "residual")  # endings of names


def decay_mask(params: Any) -> Any:
    """True for matrices and tables; biases, norms, positions and item biases are not decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).endswith(DECAYED), params)


def schedule(learning_rate: float, warmup: float, steps: int) -> optax.Schedule:
    """Linear up to `learning_rate` over the share `warmup` of the steps, then linear down to a tenth of it."""
    rise = max(round(warmup * steps), 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(learning_rate / rise, learning_rate, rise),
            optax.linear_schedule(learning_rate, 0.1 * learning_rate, max(steps - rise, 1)),
        ],
        [rise],
    )


def make_optimizer(
    learning_rate: float, warmup: float, steps: int, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """The optimizer of a stage of `steps` updates."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule(learning_rate, warmup, steps), b1=0.9, b2=0.95, weight_decay=weight_decay, mask=decay_mask
        ),
    )
