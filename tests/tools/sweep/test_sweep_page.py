"""Sweeps at their end: intervals and paired tests against closed forms, the tables, and what the page draws."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from crs_jax.tools.report.figures import Figure
from crs_jax.tools.sweep.page import Plot, chart, explain, markdown, page
from crs_jax.tools.sweep.seeds import mean_over_seeds, paired_difference, summary


def figures(*values):
    return [Figure(value) for value in values]


def found_of(**cells):
    return {cell: {seed: {"m": figure} for seed, figure in enumerate(row)} for cell, row in cells.items()}


def test_intervals_and_p_values_with_three_seeds():
    """Student's t with two degrees of freedom: F(t) = 1/2 + t / (2 sqrt(2 + t^2)), so t(97.5 %) = 4.302653."""
    a, b = np.array([0.31, 0.29, 0.36]), np.array([0.25, 0.27, 0.26])
    gaps = a - b
    error = math.sqrt(sum((g - sum(gaps) / 3) ** 2 for g in gaps) / 2 / 3)
    t = sum(gaps) / 3 / error
    difference = paired_difference(figures(*a), figures(*b))
    assert difference.value == pytest.approx(0.06)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    reach = 4.302652729911275 * error
    assert (difference.low, difference.high) == pytest.approx((0.06 - reach, 0.06 + reach), rel=1e-9)
    # By hand: squares of .02, .01, .01 from the mean add up to .0006, so the error is .01.
    mean = mean_over_seeds(figures(0.25, 0.27, 0.26))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.26, 0.26 - 0.0248413, 0.26 + 0.0248413), abs=1e-6)
    assert mean_over_seeds(figures(0.24, 0.26, 0.28)).low == pytest.approx(0.26 - 0.0496827, abs=1e-6)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """95 of 100 normal samples of four; the binomial's standard deviation over 2,000 is .5 %."""
    rng = np.random.default_rng(3)
    hits = [f.low <= 1.0 <= f.high for f in (mean_over_seeds(figures(*rng.normal(1.0, 2.0, 4))) for _ in range(2000))]
    assert abs(np.mean(hits) - 0.95) < 0.015


def test_what_cannot_be_tested():
    one = Figure(0.3, 0.2, 0.4)
    assert mean_over_seeds([one]) == one  # what the run itself gives
    assert paired_difference([one], [Figure(0.25)]) == Figure(pytest.approx(0.05))
    same = paired_difference(figures(0.3, 0.4), figures(0.3, 0.4))
    assert same == Figure(0.0, 0.0, 0.0)
    missing = paired_difference(figures(0.3, math.nan), figures(0.3, 0.4))
    assert math.isnan(missing.value)
    assert missing.p is None
    summed = summary(found_of(a=figures(0.3, 0.4), b=figures(0.2, math.nan)), ["m"], "a")
    assert summed["a"]["m"].difference is None
    assert markdown(summed, ["m"], "a").splitlines()[-1] == "| b | - |"
    assert "not tested" in explain((0,), 3, 2)
    assert "the 4 differences" in explain((0, 1), 3, 2)


CELLS = {
    "free": figures(0.6, 0.7, 0.8),
    "held": figures(0.5, 0.5, 0.5),
    "fixed": figures(0.4, 0.5, 0.3),
    "lost": figures(0.4, 0.5, math.nan),
}
SETTINGS = {"free": {"k": 8.0}, "held": {"k": 2.0}, "fixed": {"k": 4.0}, "lost": {"k": 6.0}}


def drawn(plot, **changes):
    summed = summary(found_of(**{**CELLS, **changes}), ["m"], "held")
    return ET.fromstring(chart("m over k", plot, summed, SETTINGS).figure())


def test_a_plot_draws_a_dot_and_an_interval_for_each_cell():
    """Where they stand is read back from the axes: places are linear in the values."""
    inside = drawn(Plot("k", ("m",))).find(".//svg/svg")
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in inside.findall("circle")]
    assert len(dots) == 3  # what a seed lacks is a gap
    (x_2, y_2), (x_4, y_4), (x_8, y_8) = dots
    assert (x_4 - x_2) / (x_8 - x_2) == pytest.approx(1 / 3, abs=0.01)
    assert (y_2 - y_4) / (y_2 - y_8) == pytest.approx(-0.1 / 0.2, abs=0.01)
    bars = [e for e in inside.findall("line") if e.get("class") == "spread"]
    assert len(bars) == 3
    reach = 4.302652729911275 * 0.1 / math.sqrt(3)
    per_unit = (y_2 - y_8) / 0.2
    free = max(bars, key=lambda bar: float(bar.get("x1")))
    assert float(free.get("y1")) - float(free.get("y2")) == pytest.approx(2 * reach * per_unit, abs=0.3)
    assert float(free.get("x1")) == pytest.approx(x_8, abs=0.06)


def test_lines_join_the_cells_named_and_short_axes_have_marks():
    plot = Plot("m", ("m",), {"one": ("free", "held"), "two": ("fixed",)})
    figure = drawn(plot)
    legend = "".join(figure.find("figcaption").itertext())
    assert "one" in legend
    assert "two" in legend
    paths = [e for e in figure.find(".//svg/svg").findall("path") if e.get("class") == "line"]
    assert [path.get("style") for path in paths] == ["stroke:var(--c1)", "stroke:var(--c2)"]
    words = [e.text for e in figure.find("svg").findall("text")]
    assert "0.4" in words or "0.40" in words  # x runs from .4 to .7, where no whole number is


def test_page_is_whole_and_escapes():
    summed = summary(found_of(**{**CELLS, "a <b> cell": figures(0.1, 0.2, 0.3)}), ["m"], "held")
    text = page(
        "title", "python -m x '<y>'", "explained", summed, "held", [chart("t", Plot("m", ("m",)), summed, {}).figure()]
    )
    assert "<b> cell" not in text
    assert "a &lt;b&gt; cell" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="whisker"') == 4 + 3  # cells that have the measure; their differences to `held`
    body = ET.fromstring(text[text.index("<main") : text.index("</main>") + 7])
    rows = {row.find("th").text: row for row in body.findall(".//tbody/tr")}
    assert len(rows) == 5
    free = ["".join(cell.itertext()) for cell in rows["free"].findall("td")]
    # Differences .1, .2, .3: mean .2, error .1 / sqrt(3), t = 3.4641, p = 1 - t / sqrt(2 + t^2) = .0742.
    assert free[2] == "+0.200−0.048 to +0.448"
    assert free[4] == "0.074"
    assert "".join(rows["lost"].find("td").itertext()) == "–"
    assert "reference" in "".join(rows["held"].itertext())
