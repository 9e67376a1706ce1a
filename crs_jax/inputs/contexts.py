"""The contexts before given turns of a split, as host arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crs_jax.data.windows import make_windows
from crs_jax.inputs.features import features_at
from crs_jax.inputs.task import Task
from crs_jax.rl.contexts import Contexts


def contexts_at(task: Task, split: str, where: Sequence[tuple[int, int]]) -> Contexts:
    """Host arrays of all contexts of a split that the list names."""
    windows: Any = make_windows(task.config, task.encoded[split], where, task.tokenizer)
    return Contexts(windows.tokens_BP, windows.mask_BP, features_at(task, split, where))
