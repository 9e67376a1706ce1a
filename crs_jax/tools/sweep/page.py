"""The page and the Markdown of a sweep: every measure of every cell with intervals and paired tests, and its plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from crs_jax.tools.report.charts import Chart, Line
from crs_jax.tools.report.document import document
from crs_jax.tools.report.figures import Figure, number, p_value
from crs_jax.tools.report.html import Html, join, note, section, tag
from crs_jax.tools.report.tables import figure_cell, head, row_head, table, whisker
from crs_jax.tools.sweep.seeds import Entry

MOST_LINES = 4  # colours of the page
Summary = Mapping[str, Mapping[str, Entry]]  # by cell and measure


@dataclasses.dataclass(frozen=True)
class Plot:
    """Measures over another number, a point for each cell.

    Attributes:
      x: a measure, or a setting that the cells change (`data.window`).
      y: measures, a line each.
      lines: by name, the cells that a line of each measure joins; empty: one line through all cells.
    """

    x: str
    y: Sequence[str]
    lines: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def markdown(found: Summary, measures: Sequence[str], reference: str) -> str:
    """Two tables: means with their intervals; differences to the reference with intervals and p-values."""

    def rows(of_cell: dict[str, list[str]]) -> str:
        start = ["| cell | " + " | ".join(measures) + " |", "| --- |" + " --- |" * len(measures)]
        return "\n".join(start + [f"| {cell} | " + " | ".join(texts) + " |" for cell, texts in of_cell.items()])

    means = rows({cell: [_plain(row[name].value) for name in measures] for cell, row in found.items()})
    others = {cell: row for cell, row in found.items() if cell != reference}
    if not others:
        return means
    gaps = rows(
        {cell: [_plain(row[name].difference, signed=True) for name in measures] for cell, row in others.items()}
    )
    return f"{means}\n\nDifferences to {reference}:\n\n{gaps}"


def explain(seeds: Sequence[int], cells: int, measures: int) -> str:
    """What the brackets of the tables are."""
    if len(seeds) == 1:
        return (
            f"One seed, {seeds[0]}. In brackets the 95 % interval that a run gives of a measure, over its test "
            "dialogues, where it gives one; it does not hold what another seed would change. Differences of single "
            "runs are not tested."
        )
    text = f"Means over seeds {', '.join(map(str, seeds))}, in brackets the 95 % t interval over seeds."
    if cells == 1:
        return text
    return (
        f"{text} Differences are paired by seed; p is that of the two-sided paired t-test, not corrected for the "
        f"{(cells - 1) * measures} differences tested here."
    )


def page(title: str, command: str, explained: str, found: Summary, reference: str, charts: Sequence[Html]) -> Html:
    """The whole page."""
    measures = list(next(iter(found.values())))
    parts = [
        tag(
            "header", tag("p", "crs_jax sweep", class_="kicker"), tag("h1", title), tag("pre", command), note(explained)
        )
    ]
    if charts:
        said = note("A dot is a cell, a bar its interval in the tables below.")
        parts.append(section("plots", "Plots", said, tag("div", *charts, class_="charts")))
    forests = [join([tag("h3", name), _forest(found, name, reference)]) for name in measures]
    parts.append(section("measures", "Measures", *forests))
    return document(f"{title}: crs_jax sweep", tag("main", *parts))


def chart(title: str, plot: Plot, found: Summary, settings: Mapping[str, Mapping[str, float]]) -> Chart:
    """One plot.

    Args:
      title: its heading.
      plot: what over what.
      found: the sweep's measures.
      settings: by cell, what a number of the cell's settings is, for an `x` that is no measure.
    """
    groups = plot.lines or {"": list(found)}
    lines: list[Line] = []
    for measure in plot.y:
        for name, cells in groups.items():
            points = []
            for cell in cells:
                x = found[cell][plot.x].value.value if plot.x in found[cell] else settings[cell][plot.x]
                if math.isfinite(x):
                    points.append((x, found[cell][measure].value))
            points.sort(key=lambda point: point[0])
            lines.append(
                Line(
                    ", ".join(text for text in (name, measure if len(plot.y) > 1 or not name else "") if text),
                    [(x, figure.value if math.isfinite(figure.value) else None) for x, figure in points],
                    len(lines) + 1,
                    [(x, *ends) for x, figure in points if (ends := _ends(figure))],
                )
            )
    return Chart(title, plot.y[0] if len(plot.y) == 1 else "", plot.x, lines)


def _ends(figure: Figure) -> tuple[float, float] | None:
    if figure.low is None or figure.high is None or not math.isfinite(figure.low + figure.high):
        return None
    return figure.low, figure.high


def _range(figures: Sequence[Figure]) -> tuple[float, float]:
    values = [v for f in figures for v in (f.value, *(_ends(f) or ())) if math.isfinite(v)]
    if not values:
        return 0.0, 0.0
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - air, high + air


def _forest(found: Summary, name: str, reference: str) -> Html:
    """A measure of every cell, drawn with its interval, and the difference to the reference."""
    entries = {cell: row[name] for cell, row in found.items()}
    scale = _range([entry.value for entry in entries.values()])
    gaps = [entry.difference for entry in entries.values() if entry.difference]
    gap_scale = _range(gaps)
    rows = []
    for cell, entry in entries.items():
        colour = "other" if cell == reference else "c1"
        cells = [
            figure_cell(_shown(entry.value)),
            tag("td", whisker(_shown(entry.value), *scale, colour), class_="plot"),
        ]
        if gaps:
            gap = entry.difference and _shown(entry.difference)
            cells += [
                figure_cell(gap, signed=True, split=True)
                if entry.difference
                else tag("td", "reference", class_="n split"),
                tag("td", whisker(gap, *gap_scale, colour), class_="plot"),
                tag("td", p_value(gap.p) if gap else "", class_="n"),
            ]
        rows.append(tag("tr", row_head(cell), *cells))
    heads = [head("cell", numeric=False), head("mean"), _scale_head("", scale)]
    if gaps:
        heads += [head(f"minus {reference}"), _scale_head("", gap_scale), head("p")]
    return table([heads], rows, name, "forest")


def _scale_head(text: str, scale: tuple[float, float]) -> Html:
    return tag("th", text, tag("small", f"{number(scale[0])} to {number(scale[1])}"), scope="col")


def _shown(figure: Figure) -> Figure | None:
    if not math.isfinite(figure.value):
        return None
    return figure if _ends(figure) else Figure(figure.value, p=figure.p)


def _plain(figure: Figure | None, signed: bool = False) -> str:
    """`0.1800 (0.1200 .. 0.2400)`, and with a p-value `, p 0.031`; `-` for what is not there."""
    if figure is None or not math.isfinite(figure.value):
        return "-"
    sign = "+" if signed else ""
    text, ends = f"{figure.value:{sign}.4f}", _ends(figure)
    if ends:
        inside = f"{ends[0]:{sign}.4f} .. {ends[1]:{sign}.4f}" + (
            f", p {p_value(figure.p)}" if figure.p is not None else ""
        )
        text += f" ({inside})"
    return text
