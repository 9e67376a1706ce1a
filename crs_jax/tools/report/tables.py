"""Tables with aligned numbers, intervals under them, and interval plots in a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.tools.report.figures import Figure, interval, name_of, number
from crs_jax.tools.report.html import Html, join, tag


def head(text: Any, span: int = 1, numeric: bool = True, down: int = 1) -> Html:
    """A heading cell over `span` columns."""
    return tag(
        "th",
        text,
        scope="colgroup" if span > 1 else "col",
        colspan=span if span > 1 else None,
        rowspan=down if down > 1 else None,
        class_="group" if span > 1 else ("n" if numeric else None),
    )


def row_head(name: Any, hint: Any = "", colour: str = "") -> Html:
    """The cell that names a row; `colour` is a CSS variable for its mark."""
    mark = tag("i", class_="mark", style=f"background:var(--{colour})") if colour else ""
    return tag("th", mark, name, tag("small", hint) if hint else "", scope="row")


def figure_cell(figure: Figure | None, signed: bool = False, best: bool = False, split: bool = False) -> Html:
    """A number with its interval below; `split` draws the line between two groups of columns."""
    classes = " ".join(["n", *(["best"] if best else []), *(["split"] if split else [])])
    if figure is None:
        return tag("td", "–", class_=classes)
    spread = interval(figure, signed)
    return tag("td", number(figure.value, signed), tag("small", spread) if spread else "", class_=classes)


def table(heads: Sequence[Sequence[Html]], rows: Sequence[Html], label: str, class_: str = "") -> Html:
    """A table that scrolls in a box of its own where the page is narrow."""
    body = tag(
        "table",
        tag("thead", *(tag("tr", *cells) for cells in heads)),
        tag("tbody", *rows),
        class_=class_ or None,
    )
    return tag("div", body, class_="scroll", role="region", aria_label=label, tabindex=0)


def group_row(text: str, columns: int) -> Html:
    """A row that names the rows below it."""
    return tag("tr", tag("th", text, colspan=columns, scope="rowgroup"), class_="group")


def whisker(figure: Figure | None, low: float, high: float, colour: str, hollow: bool = False) -> Html:
    """A dot with its interval on a scale from `low` to `high`, as boxes placed by percent."""
    if figure is None or not high > low:
        return Html("")

    def place(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0) * 100

    parts = []
    if low < 0 < high:
        parts.append(tag("span", class_="nil", style=f"left:{place(0):.2f}%"))
    if figure.low is not None and figure.high is not None:
        left, right = place(figure.low), place(figure.high)
        style = f"left:{left:.2f}%;width:{max(right - left, 0.3):.2f}%;background:var(--{colour})"
        parts.append(tag("span", class_="bar", style=style))
    fill = f"border-color:var(--{colour})" if hollow else f"background:var(--{colour});border-color:var(--{colour})"
    parts.append(tag("span", class_="dot", style=f"left:{place(figure.value):.2f}%;{fill}"))
    spoken = number(figure.value) + (f" ({interval(figure)})" if figure.has_interval else "")
    return tag("div", *parts, class_="whisker", role="img", aria_label=spoken, title=spoken)


def facts(entries: Mapping[str, Any], label: str, names: Mapping[str, str] | None = None) -> Html:
    """A table of names and values."""
    rows = []
    for key, value in entries.items():
        shown = (names or {}).get(key) or name_of(key)
        if isinstance(value, Figure):
            cell = figure_cell(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            cell = tag("td", number(value), class_="n")
        else:
            cell = tag("td", "–" if value is None else value)
        rows.append(tag("tr", row_head(shown), cell))
    return tag("div", tag("table", tag("tbody", *rows)), class_="scroll facts", role="region", aria_label=label,
               tabindex=0)  # fmt: skip


def sentence_list(sentences: Sequence[Any]) -> Html:
    """Sentences, one a line."""
    return tag("ul", join(tag("li", sentence) for sentence in sentences), class_="findings")
