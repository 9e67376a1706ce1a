"""What a stage's training holds from step to step, and the guard that keeps it from harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from crs_jax.runtime.checkpoint import Saved
from crs_jax.runtime.sharding import place, shardings


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


def fresh_state(
    params: Any, optimizer: optax.GradientTransformation, mesh: Mesh, extra: dict[str, Any] | None = None
) -> TrainState:
    """State before the first step, laid over the mesh: moments like their parameters, the rest on every device."""
    opt_state = fresh_optimizer_state(params, optimizer, mesh)
    return place(TrainState(jnp.int32(0), params, opt_state, jnp.asarray(False), extra or {}), mesh)


def fresh_optimizer_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The optimizer's first state, laid over the mesh."""
    layout = shardings(jax.eval_shape(optimizer.init, params), mesh)
    return jax.jit(optimizer.init, out_shardings=layout)(params)


def keep_layout(state: Any, mesh: Mesh) -> Any:
    """For the end of a jitted step: what comes out lies as what went in, so that the step is compiled once."""
    return lax.with_sharding_constraint(state, shardings(state, mesh))


class Stopwatch:
    """Seconds a stage has taken, over all its resumes."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def since(self, saved: Saved | None) -> float:
        """Those of this process and those that a checkpoint of the stage brought along."""
        return (0.0 if saved is None else saved.seconds) + time.monotonic() - self._start


def select(keep_new: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the scalar holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep_new, a, b), new, old)


def accumulated_gradients(
    loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]], params: Any, micro: Any
) -> tuple[dict[str, jax.Array], Any]:
    """Gradient of a sum of losses, one micro-batch in memory at a time.

    Args:
      loss: (params, micro-batch, its number) -> (loss, metrics). For k micro-batches to be the step that one batch is,
        its means are sums over the micro-batch divided by counts of the whole batch.
      params: differentiated.
      micro: leading axes k, then the micro-batch's.

    Returns:
      The metrics, `[k, ...]` each, and the summed gradient.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    numbers = jnp.arange(jax.tree.leaves(micro)[0].shape[0])
    if len(numbers) == 1:
        (_, metrics), grads = gradient(params, jax.tree.map(lambda a: a[0], micro), numbers[0])
        return jax.tree.map(lambda a: a[None], metrics), grads

    def add(total: Any, numbered: tuple[Any, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        (_, metrics), grads = gradient(params, *numbered)
        return jax.tree.map(jnp.add, total, grads), metrics

    grads, metrics = lax.scan(add, jax.tree.map(jnp.zeros_like, params), (micro, numbers))
    return metrics, grads


def apply_gradients(
    optimizer: optax.GradientTransformation,
    grads: Any,
    params: Any,
    opt_state: Any,
    healthy: jax.Array,
    number: jax.Array,
    pace: jax.Array | float = 1.0,
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One update, or none where `healthy` is False or the gradient is not finite.

    `number` is that of the update in its stage, from 0, updates that were not made included: the rate is a function of
    it, which the log can take too. `pace` multiplies the rate.

    Returns:
      params, opt_state, the gradient's global norm, and whether the update was made.
    """
    norm = optax.tree.norm(grads)
    healthy = healthy & jnp.isfinite(norm)
    updates, new_opt = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, number=number)
    updates = jax.tree.map(lambda u: jnp.asarray(pace, u.dtype) * u, updates)
    return (
        select(healthy, optax.apply_updates(params, updates), params),
        select(healthy, new_opt, opt_state),
        norm,
        healthy,
    )
