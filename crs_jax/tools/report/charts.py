"""Line charts as inline SVG, coloured by the page's CSS variables, so that one chart serves light and dark."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from crs_jax.tools.report.figures import number
from crs_jax.tools.report.html import Html, join, tag
from crs_jax.tools.report.style import FILE_STYLE

WIDTH, HEIGHT = 340, 196  # of the viewBox; at its usual size one unit is about a pixel
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 36
MAX_POINTS = 400  # drawn of one line


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart: points (x, y) in order of x, y None for a gap; `colour` counts from 1.

    `spread`: intervals (x, low, high) around points.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 1
    spread: Sequence[tuple[float, float, float]] = ()


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values within [low, high], steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - about))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float, step: float, largest: float) -> str:
    """A tick's number, as many decimals as its neighbours need; very small or large ones share one power of ten."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(largest) + 1e-9)
    if exponent >= 6 or exponent <= -3:
        return f"{value / 10.0**exponent:.3g}e{exponent}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3
    return f"{value:,.{min(decimals, 6)}f}".replace("-", "−")


def moving_average(values: Sequence[float | None], window: int) -> list[float | None]:
    """Centred mean over `window` points (fewer at the ends), gaps left out and kept as gaps."""
    half = window // 2
    smooth: list[float | None] = []
    for at, value in enumerate(values):
        near = [v for v in values[max(0, at - half) : at + half + 1] if v is not None]
        smooth.append(None if value is None else sum(near) / len(near))
    return smooth


def thinned(points: Sequence[tuple[float, float | None]], most: int = MAX_POINTS) -> list[tuple[float, float | None]]:
    """At most about `most` points: of each run of neighbours the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float | None]] = []
    for at in range(0, len(points), size):
        piece = points[at : at + size]
        real = [p for p in piece if p[1] is not None]
        if not real:
            kept.append(piece[0])
            continue
        kept += sorted({min(real, key=lambda p: p[1] or 0), max(real, key=lambda p: p[1] or 0)})
    return kept


def value_range(lines: Sequence[Line]) -> tuple[float, float]:
    """Lowest and highest y to show: from zero where the values are near it or all one, a little air elsewhere."""
    values = [y for line in lines for _, y in line.points if y is not None]
    values += [end for line in lines for _, *ends in line.spread for end in ends]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if high == low:
        return (min(low * 1.25, 0.0), max(low * 1.25, 0.0)) if low else (-1.0, 1.0)
    air = 0.05 * (high - low)
    if low >= 0 and low < 0.5 * high:
        return 0.0, high + air
    return low - air, high + air


def _last(value: float | None) -> str:
    if value is None or value == 0 or abs(value) >= 0.001:
        return number(value)
    return f"{value:.2e}".replace("e-0", "e-").replace("-", "−")


def _path(points: Sequence[tuple[float, float | None]], x_of, y_of) -> str:
    words, pen_down = [], False
    for x, y in points:
        if y is None:
            pen_down = False
            continue
        words.append(f"{'L' if pen_down else 'M'}{x_of(x):.1f} {y_of(y):.1f}")
        pen_down = True
    return " ".join(words)


def _draw(line: Line, x_of, y_of) -> Html:
    values = [y for _, y in line.points]
    window = len(values) // 20
    steady = window >= 3 and not line.name.startswith("validation")
    style = f"stroke:var(--c{line.colour})"
    parts = []
    if steady:
        smooth = moving_average(values, window)
        pale = _path(thinned(line.points), x_of, y_of)
        parts.append(tag("path", d=pale, class_="pale", style=style))
        drawn = thinned([(x, y) for (x, _), y in zip(line.points, smooth, strict=True)])
    else:
        drawn = thinned(line.points)
    parts.append(tag("path", d=_path(drawn, x_of, y_of), class_="line", style=style))
    parts += [tag("line", x1=f"{x_of(x):.1f}", x2=f"{x_of(x):.1f}", y1=f"{y_of(low):.1f}", y2=f"{y_of(high):.1f}",
                  class_="spread", style=style) for x, low, high in line.spread]  # fmt: skip
    real = [(x, y) for x, y in line.points if y is not None]
    if len(real) <= 25:
        parts += [tag("circle", cx=f"{x_of(x):.1f}", cy=f"{y_of(y):.1f}", r=2, style=f"fill:var(--c{line.colour})")
                  for x, y in real]  # fmt: skip
    return join(parts)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A small line chart.

    Attributes:
      title: what is measured.
      unit: of the y axis; may be empty.
      x_label: what x counts.
      lines: at least one; a line of 60 points or more is drawn pale, with its moving average over it.
      guides: names and heights of dashed lines, such as a budget; the y axis reaches as far.
    """

    title: str
    unit: str
    x_label: str
    lines: Sequence[Line]
    guides: Sequence[tuple[str, float]] = ()

    def figure(self) -> Html:
        """For the page: title, legend (each line's last value) and picture."""
        legend = [tag("span", tag("i", style=f"background:var(--c{line.colour})"),
                      line.name if len(self.lines) > 1 else "last", " ", tag("b", _last(_end(line))))
                  for line in self.lines]  # fmt: skip
        legend += [tag("span", f"dashed: {name} ", tag("b", number(y))) for name, y in self.guides]
        caption = tag(
            "figcaption",
            tag("strong", self.title),
            tag("span", self.unit, class_="unit") if self.unit else "",
            tag("div", join(legend, " "), class_="legend"),
        )
        return tag("figure", caption, self._picture(), class_="chart")

    def file(self) -> str:
        """An SVG file that stands alone: title and legend above the axes, light or dark as its reader's page."""
        rows = [tag("text", self.title, x=LEFT, y=16, class_="title")]
        top = 24
        for line in self.lines if len(self.lines) > 1 else ():
            rows.append(tag("circle", cx=LEFT + 4, cy=top + 4, r=4, style=f"fill:var(--c{line.colour})"))
            rows.append(tag("text", line.name, x=LEFT + 14, y=top + 8))
            top += 15
        height = HEIGHT + top
        parts = [tag("style", Html(FILE_STYLE)), tag("rect", width="100%", height="100%", class_="sheet"), *rows]
        drawn = self._picture(y=top, width=WIDTH, height=HEIGHT)
        name = Html('<svg xmlns="http://www.w3.org/2000/svg"')
        whole = tag("svg", *parts, drawn, viewBox=f"0 0 {WIDTH} {height}", width=2 * WIDTH, height=2 * height,
                    class_="chart")  # fmt: skip
        return whole.replace("<svg", name, 1) + "\n"

    def _picture(self, **place: float) -> Html:
        """Axes and lines."""
        lines = self.lines
        xs = [x for line in lines for x, _ in line.points] or [0.0]
        left, right = min(xs), max(xs)
        if left == right:
            left, right = left - 0.5, right + 0.5
        heights = Line("", [(left, y) for _, y in self.guides])
        low, high = value_range([*lines, heights])
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def x_of(x: float) -> float:
            return (x - left) / (right - left) * inner_width

        def y_of(y: float) -> float:
            return inner_height - (y - low) / (high - low) * inner_height

        axes = [*_upright(low, high, y_of), *_along(xs, left, right, x_of)]
        axes += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{TOP + y_of(y):.1f}", y2=f"{TOP + y_of(y):.1f}",
                     class_="guide") for _, y in self.guides]  # fmt: skip
        axes.append(tag("text", self.x_label, x=LEFT + inner_width / 2, y=HEIGHT - 4, text_anchor="middle",
                        class_="label"))  # fmt: skip
        inside = tag("svg", *(_draw(line, x_of, y_of) for line in lines), x=LEFT, y=TOP, width=inner_width,
                     height=inner_height, overflow="visible")  # fmt: skip
        spoken = f"{self.title}: " + ", ".join(f"{line.name} ends at {number(_end(line))}" for line in lines)
        return tag("svg", *axes, inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=spoken, **place)


def _end(line: Line) -> float | None:
    """The last value."""
    return next((y for _, y in reversed(line.points) if y is not None), None)


def _upright(low: float, high: float, y_of: Callable[[float], float]) -> list[Html]:
    """Ticks, numbers and rules of the y axis."""
    parts = []
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0])
    largest = max(map(abs, marks))
    for mark in marks:
        y = f"{TOP + y_of(mark):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="zero" if mark == 0 else "grid"))
        parts.append(tag("text", tick_label(mark, step, largest), x=LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
    return parts


def _along(xs: Sequence[float], left: float, right: float, x_of: Callable[[float], float]) -> list[Html]:
    """Ticks and numbers of the x axis; whole numbers where all x are."""
    parts = []
    whole = all(x == int(x) for x in xs)
    marks = [m for m in ticks(left, right) if m == int(m) or not whole] or [left]
    step = marks[1] - marks[0] if len(marks) > 1 else 1
    largest = max(map(abs, marks))
    bottom = HEIGHT - BOTTOM
    for mark in marks:
        x = LEFT + x_of(mark)
        at = f"{x:.1f}"
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(tag("text", tick_label(mark, step, largest), x=at, y=bottom + 15, text_anchor=anchor))
        parts.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 3, class_="grid"))
    return parts
