"""The loop of every trained stage: steps, figures read one step late, validation, checkpoints, early stop.

A stage says its batches, its step and its validation (`Stage`); `train` runs it from any step on, since batches and
random numbers are functions of the step's number.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crs_jax.inputs.task import Task, copy_tree
from crs_jax.rl.reward import members, stack
from crs_jax.runtime.checkpoint import Checkpoints, Saved
from crs_jax.runtime.compilation import CompiledOnce
from crs_jax.runtime.interruption import Pace, leave_if_asked, saving
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.progress import Progress, say
from crs_jax.runtime.sharding import in_parts
from crs_jax.training.halt import stop_if_halted
from crs_jax.training.state import (
    Stopwatch,
    TrainState,
    accumulated_gradients,
    apply_gradients,
    keep_layout,
    select,
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a stage has to show so far.

    Attributes:
      result: the best parameters; of PPO the policy and the reward's normaliser.
      best_loss: lowest validation loss of each model that the stage fits.
      floor: the HR@10 on validation below which PPO stops.
      stop: no step follows.
    """

    result: Any
    best_loss: tuple[float, ...] = ()
    floor: float = 0.0
    stop: bool = False


class Stage(abc.ABC):
    """A stage's training.

    Attributes:
      name: in logs and checkpoints.
      label, unit: on the console.
      task, writer: where it works.
      steps: of the whole stage.
      eval_every: steps between two validations.
      log_every: steps between two lines of the log.
      agree_every: steps between two looks of several processes whether to end.
    """

    name: str
    label: str
    unit = "steps"
    task: Task
    writer: MetricsWriter
    steps: int
    eval_every: int
    log_every: int
    agree_every = 10

    @abc.abstractmethod
    def batches(self, first: int) -> Iterator[Any]:
        """Host batches of the steps after `first`, in order."""

    @abc.abstractmethod
    def step(self, number: int, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """The state after a step, and its metrics, still on the device: a number each, or one a model."""

    @abc.abstractmethod
    def validate(self, number: int, state: Any, kept: Kept) -> Kept:
        """Validates the state, logs what it finds, and keeps what is better."""

    def check(self, number: int, values: dict[str, float], state: Any, batch: Any) -> None:
        """Raises where a step that has run met a NaN; `state` is the state now."""
        stop_if_halted(self.task.workdir, self.name, number, values, state, batch)

    def figures(self, number: int, values: dict[str, float], batch: Any, seconds: float) -> dict[str, float]:
        """What is logged of a step that has run. Raises where the stage must not go on."""
        del values["halted"]
        return values

    shown: tuple[str, ...] = ("loss",)
    """The figures beside the progress."""


class FittedStage(Stage):
    """A supervised stage, of one model or of an ensemble's members side by side: the lowest validation loss is kept.

    Its state, batches and result are `stack` of the members'.
    """

    def candidate(self, state: TrainState) -> Any:
        """The parameters of a state that are validated."""
        return state.params

    @abc.abstractmethod
    def scores(self, params: Any) -> dict[str, float]:
        """Validation of one model's parameters, `loss` among its figures."""

    def validate(self, number: int, state: Any, kept: Kept) -> Kept:
        """Logs means over the members; each keeps its best."""
        candidates = [self.candidate(one) for one in members(state)]
        scores = [self.scores(params) for params in candidates]
        means = {f"validation/{name}": float(np.mean([own[name] for own in scores])) for name in scores[0]}
        self.writer.write(self.name, number, means)
        best, losses = members(kept.result), list(kept.best_loss)
        for m, own in enumerate(scores):
            if own["loss"] < losses[m]:
                best[m], losses[m] = copy_tree(candidates[m]), own["loss"]
        return Kept(stack(best), tuple(losses))


def unmeasured(params: list[Any]) -> Kept:
    """Before any validation: the first parameters of each member."""
    return Kept(stack(params), (math.inf,) * len(params))


@dataclasses.dataclass
class Resumed:
    """A stage's checkpoints and where it goes on.

    Attributes:
      saved: the last checkpoint, None for a stage that begins.
    """

    checkpoints: Checkpoints
    saved: Saved | None
    watch: Stopwatch

    @classmethod
    def of(cls, task: Task, name: str, inputs: dict[str, str]) -> Resumed:
        """Of the task's workdir."""
        watch, checkpoints = Stopwatch(), Checkpoints(task.workdir, name, task.config, inputs)
        return cls(checkpoints, checkpoints.latest(), watch)

    @property
    def done(self) -> bool:
        """No step is left."""
        return self.saved is not None and self.saved.done

    @property
    def first(self) -> int:
        """The step it goes on after."""
        return 0 if self.saved is None else self.saved.step

    def kept(self, like: Kept) -> Kept:
        """What the checkpoint has to show, shaped as `like`, or `like` for a stage that begins."""
        if self.saved is None:
            return like
        result = self.checkpoints.restore(self.saved.step, "result", like.result)
        return Kept(result, tuple(self.saved.best_loss), self.saved.floor)

    def state(self, like: Any) -> Any:
        """The checkpoint's, shaped as `like`, or `like`."""
        return like if self.saved is None else self.checkpoints.restore(self.saved.step, "state", like)

    def close(self, said: str) -> None:
        """Says what was done before."""
        say(said)
        self.checkpoints.close()


def train(stage: Stage, resumed: Resumed, state: Any, kept: Kept) -> Kept:
    """Runs the stage's steps from where it goes on; what it has to show at the end."""
    pace, first, pending = Pace(stage.task.config.save_minutes, stage.agree_every), resumed.first, None
    if resumed.saved is not None:
        say(f"{stage.name}: goes on after {stage.unit.removesuffix('s')} {first}")

    def report(number: int, metrics: dict[str, Any], batch: Any, seconds: float, always: bool = False) -> None:
        values = {name: float(np.mean(jax.device_get(value))) for name, value in metrics.items()}
        stage.check(number, values, state, batch)
        if always or number % stage.log_every == 0 or number == 1:
            stage.writer.write(stage.name, number, stage.figures(number, values, batch, seconds))
        progress.update(1, **{name: values[name] for name in stage.shown})

    def save(number: int) -> None:
        done = kept.stop or number == stage.steps
        seconds = resumed.watch.since(resumed.saved)
        resumed.checkpoints.save(
            Saved(step=number, done=done, seconds=seconds, best_loss=kept.best_loss, floor=kept.floor, state=state,
                  result=kept.result)
        )  # fmt: skip

    clock = time.monotonic()
    with Progress(stage.steps, stage.label, stage.unit, done=first) as progress, resumed.checkpoints, saving():
        if stage.steps == 0:
            save(0)
        numbers = range(first + 1, stage.steps + 1)
        for number, batch in zip(numbers, stage.batches(first), strict=False):
            state, metrics = stage.step(number, state, batch)
            if pending is not None:
                report(*pending)
            now = time.monotonic()
            pending, clock = (number, metrics, batch, now - clock), now
            evaluate = number % stage.eval_every == 0 or number == stage.steps
            due, end = pace(number)
            if evaluate or due or number == first + 1:  # a bad step stops here, before a save
                report(*pending, always=evaluate)
                pending = None
            if evaluate:
                kept = stage.validate(number, state, kept)
            if evaluate or due:
                save(number)
                pace.saved()
            if kept.stop:
                break
            if end:
                leave_if_asked()
    return kept


def make_step(
    name: str,
    loss: Callable[[Any, Any, Any, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]],
    counts: Callable[[Any], Any],
    optimizer: Any,
    mesh: Mesh,
    micro_batches: int = 1,
    average: float = 0.0,
) -> CompiledOnce:
    """Jitted (state, frozen, batch, key) -> (state, metrics): one supervised update.

    Args:
      name: of the program.
      loss: (params, frozen, micro-batch, key, counts of the whole batch) -> its part of the mean loss, and metrics.
      counts: of the whole batch, what its sums are divided by.
      optimizer: of the parameters.
      mesh: rows are cut along its data and fsdp axes.
      micro_batches: that gradients are summed over.
      average: decay of the running average of parameters in `state.extra`, where there is one.
    """

    def step(state: TrainState, frozen: Any, batch: Any, key: jax.Array):
        step_key, of_all = jax.random.fold_in(key, state.step), counts(batch)

        def micro_loss(params, micro: Any, number: jax.Array):
            return loss(params, frozen, micro, jax.random.fold_in(step_key, number), of_all)

        each, grads = accumulated_gradients(micro_loss, state.params, in_parts(batch, micro_batches, mesh))
        metrics = {name: value.sum() for name, value in each.items()}
        healthy = jnp.isfinite(metrics["loss"]) & ~state.halted
        params, opt_state, norm, made = apply_gradients(
            optimizer, grads, state.params, state.opt_state, healthy, state.step
        )
        halted, extra = state.halted | ~made, state.extra
        if "average" in extra:
            new = {"average": averaged(extra["average"], params, state.step, average)}
            extra = select(made, new, extra)
        new_state = TrainState(state.step + 1, params, opt_state, halted, extra)
        return keep_layout(new_state, mesh), metrics | {"grad_norm": norm, "halted": halted}

    return CompiledOnce(name, step, mesh, donate=0)


def averaged(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The running average of parameters; its decay is min(decay, (1 + step) / (10 + step)), so that it starts young."""
    rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + rate * (new - old), average, params)


def after(batches: Iterator[Any], first: int) -> Iterator[Any]:
    """Those after the first so many, which are made and left out: each is a function of the ones before it."""
    return itertools.islice(batches, first, None)
