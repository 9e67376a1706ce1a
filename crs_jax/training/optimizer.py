"""AdamW with warm-up, linear decay and a clipped gradient norm: one recipe for the three stages."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from crs_jax.sharding import path_name

DECAYED = ("kernel", "words", "projection")  # endings of names
ITEMS_DECAYED = ("items/residual", "items/bias")  # what is learned of single items


def named_mask(params: Any, endings: tuple[str, ...]) -> Any:
    """True where a parameter's name ends so."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).endswith(endings), params)


def query_mask(params: Any) -> Any:
    """True for the query's parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "query/" in path_name(path), params)


def schedule(learning_rate: float, warmup: float, steps: int, end: float = 0.1) -> optax.Schedule:
    """Linear up to `learning_rate` over the share `warmup` of the steps, then linear to the share `end` of it."""
    rise = max(round(warmup * steps), 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(learning_rate / rise, learning_rate, rise),
            optax.linear_schedule(learning_rate, end * learning_rate, max(steps - rise, 1)),
        ],
        [rise],
    )


def make_optimizer(
    learning_rate: float,
    warmup: float,
    steps: int,
    weight_decay: float,
    clip_norm: float,
    item_decay: float | None = None,
    query_rate: float = 1.0,
    end: float = 0.1,
) -> optax.GradientTransformation:
    """The optimizer of a stage of `steps` updates.

    Matrices and tables are decayed by `weight_decay`, the items' residuals and biases by `item_decay` (None: by the
    same); other biases, norms, positions and gains are not. The query learns at `query_rate` times the rate. `end`: of
    `schedule`.
    """
    item_decay = weight_decay if item_decay is None else item_decay
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.add_decayed_weights(weight_decay, functools.partial(named_mask, endings=DECAYED)),
        optax.add_decayed_weights(item_decay, functools.partial(named_mask, endings=ITEMS_DECAYED)),
        optax.scale_by_learning_rate(schedule(learning_rate, warmup, steps, end)),
        optax.masked(optax.scale(query_rate), query_mask),
    )
