"""The headline table: SFT, PPO, everything they were measured beside, and what others published."""

from __future__ import annotations

from crs_jax.reporting.figures import Figure, name_of, number
from crs_jax.reporting.html import Html, missing, note, section, tag
from crs_jax.reporting.overview import measure_near
from crs_jax.reporting.ranking import MARKS, rows_of
from crs_jax.reporting.tables import figure_cell, group_row, head, row_head, table, whisker
from crs_jax.reporting.workdir import Run

TITLE = "Every row at a glance"
POLICIES = ("init", "sft", "ppo", "optimum", "rerank")


Figures = list[Figure | None]


def _measures(run: Run) -> list[tuple[str, str, tuple[str, ...]]]:
    """Heading, the section of metrics.json, and the path behind a row's name."""
    near = [measure_near(run, *measure) for measure in (("hr", 10), ("hr", 1), ("hr", 50), ("mrr", 10))]
    found: list[tuple[str, str, tuple[str, ...]]] = [
        (name_of(name), "ranking", ("fresh", "full", name)) for name in dict.fromkeys(near) if name
    ]
    return [*found, ("BLEU-4", "text", ("bleu-4",)), ("Mean reward", "rewards", ("reward",))]


def _row(run: Run, row: str, published: bool) -> Figures:
    """The figures of a row; the last is the simulator's true utility."""
    found = [
        run.figure("published" if published and where == "ranking" else where, row, *path)
        for _, where, path in _measures(run)
    ]
    return [*found, None if published else run.figure("simulator", f"utility_{row}")]


def standing(run: Run) -> Html:
    """The section with the headline table; the first measure is drawn, too."""
    measured = rows_of(run)
    if not measured:
        return section("standing", TITLE, missing("No figures: the stage evaluate has not been run."))
    groups = [
        ("Policies of this run", [row for row in measured if row in POLICIES], False),
        ("Baselines on the same instances", [row for row in measured if row not in POLICIES], False),
        ("Published, not measured here", list(run.table("published")), True),
    ]
    rows = [
        (title, row, figures, published)
        for title, names, published in groups
        for row in names
        if any(figures := _row(run, row, published))
    ]
    titles = [*(title for title, _, _ in _measures(run)), "True utility"]
    shown = [i for i in range(len(titles)) if any(figures[i] for _, _, figures, _ in rows)]
    highest = [max([f.value for _, _, figures, other in rows if (f := figures[i]) and not other], default=None)
               for i in range(len(titles))]  # fmt: skip
    first = [f for _, _, figures, _ in rows if (f := figures[shown[0]])]
    end = 1.05 * max(f.value if f.high is None else f.high for f in first)
    body: list[Html] = []
    for at, (title, row, figures, published) in enumerate(rows):
        if at == 0 or rows[at - 1][0] != title:
            body.append(group_row(title, len(shown) + 2))
        cells = [figure_cell(f := figures[i], best=bool(f and not published and f.value == highest[i])) for i in shown]
        plot = whisker(figures[shown[0]], 0.0, end, MARKS.get(row, "other"), hollow=published)
        cells.insert(1, tag("td", plot, class_="plot"))
        body.append(tag("tr", row_head(name_of(row), "", MARKS.get(row, "")), *cells, class_=MARKS.get(row)))
    heads = [head("", numeric=False), *(head(titles[i]) for i in shown)]
    heads.insert(2, head(f"from 0 to {number(end)}", numeric=False))
    words = note(
        "Fresh targets, full catalogue. HR@10: the share of the items newly proposed by people that a row ranks among "
        "its first 10. Small print: 95% interval by bootstrap over dialogues. Bold: the highest of this run's rows.",
        " Published rows were measured on the same corpus by others, with settings of their own."
        if run.table("published")
        else "",
    )
    return section("standing", TITLE, table([heads], body, TITLE, "compare"), words)
