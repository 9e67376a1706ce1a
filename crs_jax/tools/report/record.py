"""The record of the run: data counts, time, versions, the complete config."""

from __future__ import annotations

from crs_jax.runtime.json_files import to_json
from crs_jax.runtime.progress import duration
from crs_jax.tools.report.figures import name_of, number
from crs_jax.tools.report.html import Html, folded, missing, section, tag
from crs_jax.tools.report.scores import row_names
from crs_jax.tools.report.tables import facts, head, row_head, table
from crs_jax.tools.report.workdir import Run, flat_figures

SECTIONS = (
    "ranking",
    "paired",
    "published",
    "success",
    "text",
    "rewards",
    "reward_model",
    "signals",
    "ppo",
    "optimum",
    "health",
    "monitors",
)
SHOWN = frozenset({*SECTIONS, "simulator", "data", "run", "evaluated"})
IN_HEADER = frozenset(
    ["device", "devices", "commit", "command", "stages", "seconds", "seconds_by_stage", "finished", "date", "seed"]
)


def data(run: Run) -> Html:
    """Counts of the data."""
    counts = flat_figures(run.table("data"))
    if not counts:
        return section("data", "Data", missing("No data counts were recorded."))
    return section("data", "Data", facts(counts, "Data"))


def _time_row(name: str, seconds: float, total: float, class_: str | None = None) -> Html:
    cells = (number(seconds), duration(seconds), f"{seconds / total:.0%}" if total else "–")
    return tag("tr", row_head(name), *(tag("td", cell, class_="n") for cell in cells), class_=class_)


def _times(run: Run) -> Html:
    seconds = {s: run.figure("run", "seconds_by_stage", s) for s in run.table("run", "seconds_by_stage")}
    real = {stage: figure.value for stage, figure in seconds.items() if figure}
    if not real:
        return missing("The time of the stages was not recorded.")
    total = sum(real.values())
    rows = [_time_row(name_of(stage), value, total) for stage, value in real.items()]
    rows.append(_time_row("All", total, total, "total"))
    heads = [[head("Stage", numeric=False), head("Seconds"), head("Time"), head("Share")]]
    return table(heads, rows, "Time by stage")


def record(run: Run) -> Html:
    """Time by stage, what else `run` holds, figures without a section of their own, the config."""
    rest = flat_figures({key: value for key, value in run.table("run").items() if key not in IN_HEADER})
    other = {key: value for key, value in run.metrics.items() if key not in SHOWN}
    parts = [_times(run)]
    if rest:
        parts.append(facts(rest, "Run", row_names(rest)))
    if other:
        parts.append(folded("Other figures", tag("pre", to_json(other, indent=2), tabindex=0)))
    parts.append(folded("Complete config (config.json)", tag("pre", to_json(run.config, indent=2), tabindex=0)))
    return section("run", "Time and settings", *parts)
