"""The loop of the supervised stages: steps, figures read one step late, validation, checkpoints.

A stage fits one model or, side by side, the members of an ensemble; what is saved is `together` of them. Batches are a
function of the step's number, so that a stage goes on from any step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from crs_jax.rl.reward import members, together
from crs_jax.runtime.checkpoint import Checkpoints, Saved
from crs_jax.runtime.interruption import Pace, leave_if_asked, saving
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.progress import Progress, say
from crs_jax.training.halt import stop_if_halted
from crs_jax.training.state import TrainState
from crs_jax.training.task import Task, copy_tree

LOOK = 10
"""Steps between two looks of several processes whether to end."""


@dataclasses.dataclass
class Best:
    """Of each member: the parameters with the lowest validation loss, and that loss."""

    params: list[Any]
    loss: list[float]

    @classmethod
    def of(cls, params: list[Any]) -> Best:
        """Before any validation."""
        return cls(params, [math.inf] * len(params))

    def restored(self, checkpoints: Checkpoints, saved: Saved) -> Best:
        """That of a checkpoint, shaped as this one."""
        result = checkpoints.restore(saved.step, "result", together(self.params))
        return Best(members(result), list(saved.best_loss))


@dataclasses.dataclass(kw_only=True)
class Supervised:
    """A supervised stage.

    Attributes:
      stage, label: its name in logs and checkpoints, and on the console.
      task, writer, checkpoints: where it works.
      steps: of the whole stage.
      look: steps between two validations.
      batch: (step, what the iterable of `run` gave) -> host batch of each member.
      step: (number of the member, state, host batch) -> (state, metrics).
      validate: params -> scores, `loss` among them.
      kept: state -> the parameters that are validated.
      beside: (step, what the iterable gave, host batches, seconds of the step) -> more figures to log.
    """

    stage: str
    label: str
    task: Task
    writer: MetricsWriter
    checkpoints: Checkpoints
    steps: int
    look: int
    batch: Callable[[int, Any], list[Any]]
    step: Callable[[int, TrainState, Any], tuple[TrainState, dict[str, Any]]]
    validate: Callable[[Any], dict[str, float]]
    kept: Callable[[TrainState], Any] = lambda state: state.params
    beside: Callable[[int, Any, list[Any], float], dict[str, Any]] = lambda *_: {}

    def run(
        self, states: list[TrainState], best: Best, given: Iterable[Any], first: int, spent: Callable[[], float]
    ) -> list[Any]:
        """Goes on after step `first`; the best parameters of each member. `spent()`: the stage's seconds so far."""
        pace, pending = Pace(self.task.config.save_minutes, LOOK), None
        if first:
            say(f"{self.stage}: goes on after step {first}")
        clock = time.monotonic()
        with Progress(self.steps, self.label, "steps", done=first) as progress, self.checkpoints, saving():
            for number, one in enumerate(given, 1):
                if number > self.steps:
                    break
                if number <= first:
                    continue
                batch = self.batch(number, one)
                stepped = [self.step(m, state, own) for m, (state, own) in enumerate(zip(states, batch, strict=True))]
                states, metrics = [pair[0] for pair in stepped], [pair[1] for pair in stepped]
                if pending is not None:
                    progress.update(loss=self.report(states, *pending))
                now = time.monotonic()
                pending, clock = (number, metrics, one, batch, now - clock), now
                look = number % self.look == 0 or number == self.steps
                save, end = pace(number)
                if not (look or save):
                    continue
                progress.update(loss=self.report(states, *pending, always=look))  # a bad step stops here, before a save
                pending = None
                if look:
                    self.validated(number, states, best)
                kept = Saved(step=number, done=number == self.steps, seconds=spent(), best_loss=tuple(best.loss),
                             state=together(states), result=together(best.params))  # fmt: skip
                self.checkpoints.save(kept)
                pace.saved()
                if end:
                    leave_if_asked()
        return best.params

    def report(
        self,
        states: list[TrainState],
        number: int,
        metrics: list[dict[str, Any]],
        one: Any,
        batch: list[Any],
        seconds: float,
        always: bool = False,
    ) -> float:
        """Logs the metrics of a step that has run, means over the members; returns its loss. Stops at a bad step."""
        values = {name: float(np.mean([float(own[name]) for own in metrics])) for name in metrics[0]}
        stop_if_halted(self.task.workdir, self.stage, number, values, together(states), together(batch))
        del values["halted"]
        if always or number % self.task.config.log_every == 0 or number == 1:
            self.writer.write(self.stage, number, {**values, **self.beside(number, one, batch, seconds)})
        return values["loss"]

    def validated(self, number: int, states: list[TrainState], best: Best) -> None:
        """Validates each member, logs the means, and keeps what is better than the best so far."""
        kept = [self.kept(state) for state in states]
        scores = [self.validate(params) for params in kept]
        means = {f"validation/{name}": float(np.mean([own[name] for own in scores])) for name in scores[0]}
        self.writer.write(self.stage, number, means)
        for m, own in enumerate(scores):
            if own["loss"] < best.loss[m]:
                best.params[m], best.loss[m] = copy_tree(kept[m]), own["loss"]
