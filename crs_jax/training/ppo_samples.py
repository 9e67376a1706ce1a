"""What PPO's checks show beside figures: a few replies before and after it, and how rewards and KL are spread."""

from __future__ import annotations

from typing import Any

import numpy as np

from crs_jax.inputs.task import Task
from crs_jax.rl.reward import Normaliser
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.tensorboard import markdown_table
from crs_jax.signals.registry import rewards
from crs_jax.training.ppo_validation import Validated, Validation

SHOWN = 4  # contexts
PLACES = ("dialogue", "message", "context", "person")


class Samples:
    """Replies of the policies before PPO and now to the same contexts, by the same random numbers.

    Args:
      task: the run.
      validation: whose contexts they are.
      params: of the policy before PPO; a resumed stage draws its replies again.
      normaliser: of its reward.
    """

    def __init__(self, task: Task, validation: Validation, params: Any, normaliser: Normaliser):
        self.task, self.validation = task, validation
        self._before: Validated | None = None
        self._shown = sorted({round(i) for i in np.linspace(0, validation.count - 1, min(SHOWN, validation.count))})
        self._draw = lambda: validation.replies(params, normaliser)

    def write(self, writer: MetricsWriter, number: int) -> None:
        """Logs the replies of the last check, that after iteration `number`; nothing without contexts."""
        now = self.validation.last
        if now is None:
            return
        if self._before is None:
            self._before = now if number == 0 else self._draw()
        names = ["reward", "kl", *rewards()[: now.signal_IS.shape[1]]]
        for name, values in zip(names, [now.reward_I, now.kl_I, *now.signal_IS.T], strict=True):
            writer.histogram("ppo", number, f"replies/{name}", values)
        columns = [*PLACES, *(f"{name} {when}" for when in ("before", "now") for name in ("reply", *names))]
        rows = []
        for place, i in enumerate(self._shown, 1):
            at, before, after = self._place(i), self._reply(self._before, i), self._reply(now, i)
            compared = list(zip(["reply", *names], before, after, strict=True))
            where = f"{at[0]}, message {at[1]}"
            tables = [markdown_table(["dialogue", where], list(zip(PLACES[2:], at[2:], strict=True)))]
            tables.append(markdown_table(["", "before PPO", f"after iteration {number}"], compared))
            writer.text("ppo", number, f"samples/{place}", "\n\n".join(tables))
            rows.append([*at, *before, *after])
        writer.table("samples", columns, rows)

    def _place(self, i: int) -> list[str]:
        d, t = self.validation.where[i]
        corpus, window = self.task.corpus, self.task.config.data.window
        dialogue, names = corpus.validation[d], corpus.catalogue.names
        context = [f"{turn.role}: {turn.render(names)}" for turn in dialogue.turns[max(0, t - window) : t]]
        return [dialogue.dialogue_id, str(t), "\n".join(context), dialogue.turns[t].render(names)]

    def _reply(self, found: Validated, i: int) -> list[Any]:
        catalogue = self.task.corpus.catalogue
        items, words = self.task.tokenizer.decode_reply(found.token_IR[i], catalogue)
        proposed = f"[{', '.join(catalogue.items[item].name for item in items)}] " if items else ""
        numbers = [found.reward_I[i], found.kl_I[i], *found.signal_IS[i]]
        return [proposed + words, *(float(x) if np.isfinite(x) else None for x in numbers)]
