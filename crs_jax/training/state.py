"""What a stage's training holds from step to step, and the guard that keeps it from harm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: updates (PPO: iterations) done.
      params: nested dict of trained arrays.
      opt_state: the optimizer's.
      halted: True once a step met a NaN or an infinity; sticky, and nothing else changes any more.
      extra: stage-specific arrays (PPO: KL coefficients).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    halted: jax.Array
    extra: dict[str, jax.Array]


def fresh_state(params: Any, optimizer: optax.GradientTransformation, extra: dict | None = None) -> TrainState:
    """State before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.asarray(False), extra or {})


def select(keep_new: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the scalar holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep_new, a, b), new, old)


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Any, params: Any, opt_state: Any, healthy: jax.Array
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One update, or none where `healthy` is False or the gradient is not finite.

    Returns:
      params, opt_state, the gradient's global norm, and whether the update was made.
    """
    norm = optax.global_norm(grads)
    healthy = healthy & jnp.isfinite(norm)
    updates, new_opt = optimizer.update(grads, opt_state, params)
    return (
        select(healthy, optax.apply_updates(params, updates), params),
        select(healthy, new_opt, opt_state),
        norm,
        healthy,
    )


class TrainingHaltedError(RuntimeError):
    """Training met a NaN or an infinity; the message says where and what was kept."""


def raise_if_halted(stage: str, step: int, metrics: dict[str, Any]) -> None:
    """`TrainingHaltedError` where the step's metrics carry the flag."""
    if bool(metrics.get("halted", False)):
        bad = [name for name, value in metrics.items() if not bool(jnp.isfinite(jnp.asarray(value, float)).all())]
        raise TrainingHaltedError(
            f"{stage}: step {step} met a NaN or an infinity ({', '.join(bad) or 'in the gradient'}); parameters are as "
            f"before that step. Lower --config.{stage}.learning_rate or look at the data."
        )
