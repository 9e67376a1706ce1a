"""What a run left, read for the report."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import numbered_json_lines
from crs_jax.runtime.metrics import METRICS_LINES
from crs_jax.runtime.versions import numbered_log, read_settings, read_versioned
from crs_jax.tools.report.figures import Figure

FIGURE_KEYS = frozenset({"value", "low", "high", "p", "n"})


@dataclasses.dataclass(frozen=True)
class Series:
    """One logged metric of one stage: `points` are (step, value), in order of step; None where not finite."""

    name: str
    points: tuple[tuple[float, float | None], ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a workdir: `config.json` and `metrics.json` must be there, the others may be missing.

    Attributes:
      series: stage to metric name to what was logged.
      samples: the objects of `samples.jsonl`.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    series: Mapping[str, Mapping[str, Series]]
    samples: tuple[Mapping[str, Any], ...]

    @classmethod
    def load(cls, workdir: pathlib.Path) -> Run:
        """Reads a workdir; `InputError` names file and line of what cannot be read."""
        workdir = pathlib.Path(workdir)
        return cls(
            workdir=workdir,
            config=read_settings(workdir / "config.json"),
            metrics=read_versioned(workdir / "metrics.json"),
            series=_series(workdir / METRICS_LINES),
            samples=_samples(workdir / "samples.jsonl"),
        )

    def _refuse(self, path: tuple[str, ...], found: Any, expected: str) -> InputError:
        return InputError(
            f"{self.workdir / 'metrics.json'}: {'.'.join(path)} is {str(found)[:60]!r}, expected {expected}"
        )

    def table(self, *path: str) -> Mapping[str, Any]:
        """The mapping at a path of `metrics.json`, empty where there is none."""
        found: Any = self.metrics
        for depth, key in enumerate(path, 1):
            found = found.get(key)
            if found is None:
                return {}
            if not isinstance(found, dict):
                raise self._refuse(path[:depth], found, "an object")
        return found

    def figure(self, *path: str) -> Figure | None:
        """The number at a path of `metrics.json`: a plain one, or `{"value": ..., "low": ...}`."""
        found = self.table(*path[:-1]).get(path[-1])
        if found is None:
            return None
        parts = found if isinstance(found, dict) else {"value": found}
        for key in ("value", "low", "high", "p"):
            part = parts.get(key)
            if part is not None and (isinstance(part, bool) or not isinstance(part, (int, float))):
                raise self._refuse(path, found, 'a number or {"value": number, "low": ..., "high": ...}')
        if parts.get("value") is None:
            return None
        return Figure(parts["value"], parts.get("low"), parts.get("high"), parts.get("p"))

    def difference(self, *path: str) -> Figure | None:
        """PPO minus SFT, paired: what `paired.ppo-sft` (or `paired.sft-ppo`, turned round) holds at `path`."""
        found = self.figure("paired", "ppo-sft", *path)
        if found is None:
            turned = self.figure("paired", "sft-ppo", *path)
            found = -turned if turned else None
        return found

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the config by its dotted name."""
        found: Any = self.config
        for key in path.split("."):
            if not isinstance(found, dict) or key not in found:
                return default
            found = found[key]
        return found


def is_figure(value: Any) -> bool:
    """Whether a value of `metrics.json` is one number, with or without an interval."""
    if isinstance(value, dict):
        return "value" in value and set(value) <= FIGURE_KEYS
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def flat_figures(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under one name each (`sft · reward`): numbers, `Figure`s, words; lists as words.

    `auc`, `auc-low` and `auc-high` make one `Figure`. What reads as none of these is left out.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            number = value.get("value")
            if is_figure(value) and isinstance(number, (int, float)):
                flat[name] = Figure(number, value.get("low"), value.get("high"))
            elif not is_figure(value):
                flat |= flat_figures(value, f"{name} · ")
        elif value is None or isinstance(value, (str, bool, int, float)):
            flat[name] = value
        elif isinstance(value, list) and all(isinstance(x, (str, int, float)) for x in value):
            flat[name] = ", ".join(map(str, value))
    for name in [name for name in flat if f"{name}-low" in flat]:
        low, high = (flat.get(f"{name}-{end}") for end in ("low", "high"))
        if _number(flat[name]) and _number(low) and _number(high):
            flat[name] = Figure(flat[name], flat.pop(f"{name}-low"), flat.pop(f"{name}-high"))
        elif flat.get(name, 0) is None:  # not defined on this run's data, and so are its ends
            flat.pop(f"{name}-low", None)
            flat.pop(f"{name}-high", None)
    return flat


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _series(path: pathlib.Path) -> dict[str, dict[str, Series]]:
    points: dict[str, dict[str, dict[float, float | None]]] = {}
    for line, record in numbered_log(path):
        stage, step = record.get("stage"), record.get("step")
        if not isinstance(stage, str) or isinstance(step, bool) or not isinstance(step, (int, float)):
            raise InputError(f"{path}:{line}: lacks a stage (a word) or a step (a number); delete the line")
        for name, value in record.items():
            if name in ("stage", "step"):
                continue
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"{path}:{line}: {name} is {str(value)[:60]!r}, expected a number")
            finite = value if value is not None and math.isfinite(value) else None
            points.setdefault(stage, {}).setdefault(name, {})[step] = finite
    return {
        stage: {name: Series(name, tuple(sorted(by_step.items()))) for name, by_step in metrics.items()}
        for stage, metrics in points.items()
    }


def _samples(path: pathlib.Path) -> tuple[Mapping[str, Any], ...]:
    samples = []
    for line, sample in numbered_json_lines(path):
        context = sample.get("context") or []
        if not isinstance(context, list) or not all(isinstance(turn, dict) for turn in context):
            raise InputError(f"{path}:{line}: context is not a list of objects with role and text")
        for who in ("human", "sft", "ppo"):
            reply = sample.get(who) or {}
            if not isinstance(reply, dict):
                raise InputError(f"{path}:{line}: {who} is {str(reply)[:60]!r}, expected an object with text and items")
            for key in ("items", "top"):
                if not isinstance(reply.get(key) or [], list):
                    raise InputError(f"{path}:{line}: {who}.{key} is not a list of titles")
        samples.append(sample)
    return tuple(samples)
