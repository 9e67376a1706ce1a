"""The headline table: SFT, PPO, everything they were measured beside, and what others published."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from crs_jax.tools.report.figures import Figure, name_of, number
from crs_jax.tools.report.html import Html, missing, note, section, tag
from crs_jax.tools.report.overview import measure_near, people_recommend
from crs_jax.tools.report.ranking import MARKS, rows_of
from crs_jax.tools.report.tables import figure_cell, group_row, head, row_head, table, whisker
from crs_jax.tools.report.workdir import Run

TITLE = "Every row at a glance"
POLICIES = ("init", "sft", "ppo", "optimum", "rerank")


Figures = list[Figure | None]


class Measure(NamedTuple):
    """A column: where metrics.json has it, as section and the path behind a row's name, and which figure is best."""

    title: str
    section: str
    path: tuple[str, ...]
    best: Callable[[list[float]], float] | None = max


def _measures(run: Run) -> list[Measure]:
    near = [measure_near(run, *measure) for measure in (("hr", 10), ("hr", 1), ("hr", 50), ("mrr", 10))]
    return [
        *(Measure(name_of(name), "ranking", ("fresh", "full", name)) for name in dict.fromkeys(near) if name),
        Measure("BLEU-4", "text", ("bleu-4",)),
        Measure("Perplexity", "text", ("perplexity",), min),
        Measure("Recommends", "text", ("recommends",), None),
        Measure("Mean reward", "rewards", ("reward",)),
    ]


def _row(run: Run, row: str, published: bool) -> Figures:
    """The figures of a row; the last is the simulator's true utility."""
    if row == "human":
        share = people_recommend(run)
        found = [share if measure.title == "Recommends" else None for measure in _measures(run)]
    else:
        found = [
            run.figure(
                "published" if published and measure.section == "ranking" else measure.section, row, *measure.path
            )
            for measure in _measures(run)
        ]
    return [*found, None if published else run.figure("simulator", f"utility_{row}")]


def standing(run: Run) -> Html:
    """The section with the headline table; the first measure is drawn, too."""
    measured = rows_of(run)
    if not measured:
        return section("standing", TITLE, missing("No figures: the stage evaluate has not been run."))
    groups = [
        ("Policies of this run, and people", [*(row for row in measured if row in POLICIES), "human"], False),
        ("Baselines on the same instances", [row for row in measured if row not in POLICIES], False),
        ("Published, not measured here", list(run.table("published")), True),
    ]
    rows = [
        (title, row, figures, published)
        for title, names, published in groups
        for row in names
        if any(figures := _row(run, row, published))
    ]
    measures = [*_measures(run), Measure("True utility", "simulator", ())]
    shown = [i for i in range(len(measures)) if any(figures[i] for _, _, figures, _ in rows)]
    own = [[f.value for _, _, figures, other in rows if (f := figures[i]) and not other] for i in range(len(measures))]
    best = [m.best(values) if m.best and values else None for m, values in zip(measures, own, strict=True)]
    first = [f for _, _, figures, _ in rows if (f := figures[shown[0]])]
    end = 1.05 * max(f.value if f.high is None else f.high for f in first)
    body: list[Html] = []
    for at, (title, row, figures, published) in enumerate(rows):
        if at == 0 or rows[at - 1][0] != title:
            body.append(group_row(title, len(shown) + 2))
        cells = [figure_cell(f := figures[i], best=bool(f and not published and f.value == best[i])) for i in shown]
        plot = whisker(figures[shown[0]], 0.0, end, MARKS.get(row, "other"), hollow=published)
        cells.insert(1, tag("td", plot, class_="plot"))
        body.append(tag("tr", row_head(name_of(row), "", MARKS.get(row, "")), *cells, class_=MARKS.get(row)))
    heads = [head("", numeric=False), *(head(measures[i].title) for i in shown)]
    heads.insert(2, head(f"from 0 to {number(end)}", numeric=False))
    words = note(
        "Fresh targets, full catalogue. HR@10: the share of the items newly proposed by people that a row ranks among "
        "its first 10. Perplexity: of people's replies. Recommends: the share of replies that propose an item. "
        "Small print: 95% interval by bootstrap over dialogues. Bold: the best of this run's rows.",
        " Published rows were measured on the same corpus by others, with settings of their own."
        if run.table("published")
        else "",
    )
    return section("standing", TITLE, table([heads], body, TITLE, "compare dense"), words)
