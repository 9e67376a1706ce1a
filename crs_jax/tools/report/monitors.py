"""Signs that a policy pleases the reward model rather than people, in bounds or not."""

from __future__ import annotations

from typing import Any

from crs_jax.tools.report.figures import number
from crs_jax.tools.report.html import Html, join, missing, note, tag
from crs_jax.tools.report.tables import head, row_head, table
from crs_jax.tools.report.workdir import Run

TITLE = "Monitors of reward hacking"


def warned(run: Run) -> list[str]:
    """The warnings, in words."""
    return [str(text) for text in run.table("health").values() if text]


def finding(run: Run) -> Html | None:
    """A sentence for the top of the page; None without PPO."""
    if not run.table("ppo"):
        return None
    texts = warned(run)
    if not texts:
        return join(["Monitors of reward hacking: ", tag("b", "all in bounds"), "."]) if run.table("monitors") else None
    count = tag("b", f"{len(texts)} warning{'s' * (len(texts) > 1)}")
    return join(["Monitors of reward hacking: ", count, ": ", "; ".join(texts), "."])


def monitors(run: Run) -> Html:
    """The table of all monitors; without figures of those in bounds, the warnings alone."""
    title = tag("h3", TITLE)
    found = run.table("monitors")
    if not found:
        texts = [tag("p", text, class_="warning") for text in warned(run)]
        return tag("div", title, *texts or [missing("No monitors were recorded, and no warning.")])
    rows = []
    for kind in found:
        entry = run.table("monitors", kind)
        before, now = run.figure("monitors", kind, "before"), run.figure("monitors", kind, "now")
        bad = bool(entry.get("bad"))
        cells: list[Any] = [number(figure.value if figure else None) for figure in (before, now)]
        rows.append(
            tag(
                "tr",
                row_head(entry.get("measure", kind)),
                tag("td", tag("b", "warning") if bad else "in bounds", class_="state warning" if bad else "state"),
                *(tag("td", cell, class_="n") for cell in cells),
                tag("td", entry.get("bound", ""), class_="words"),
            )
        )
    names = head("State", numeric=False), head("At the start"), head("Now"), head("Warned of", numeric=False)
    words = note(
        "Means of the first and the last iterations; validation figures: the SFT policy's and the last check's; test "
        "figures: SFT's and PPO's. A warning is a reason to look at the curves and the dialogues below, not a verdict."
    )
    return tag("div", title, table([[head("", numeric=False), *names]], rows, TITLE), words)
