"""Makes `report.html`: one page with everything a run found, for a colleague to read without the code."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Sequence

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_atomically
from crs_jax.runtime.program import Parser
from crs_jax.tools.report import curves, overview, ranking, record, samples, scores, standing
from crs_jax.tools.report.document import document
from crs_jax.tools.report.html import Html, tag
from crs_jax.tools.report.workdir import Run

REPORT = "report.html"


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `<workdir>/report.html` and returns its path.

    Reads `config.json` and `metrics.json`, which must be there, and `metrics.jsonl` and `samples.jsonl`, which may be
    missing; a section without figures says so. The page is one file that fetches nothing.

    Raises:
      InputError: a file cannot be read; the message names file and line, or the field of `metrics.json`.
    """
    run = Run.load(pathlib.Path(workdir))
    path = run.workdir / REPORT
    write_atomically(path, page(run))
    return path


def page(run: Run) -> Html:
    """The whole page."""
    sections = [
        standing.standing(run),
        overview.headline(run),
        overview.simulator(run),
        ranking.ranking(run),
        scores.replies(run),
        scores.signals(run),
        scores.reward_model(run),
        scores.alignment(run),
        scores.liked(run),
        curves.curves(run),
        samples.samples(run),
        record.data(run),
        record.record(run),
    ]
    body = tag(
        "main",
        overview.header(run),
        _contents(sections),
        *sections,
        tag("footer", "Written by crs_jax from config.json, metrics.json, metrics.jsonl and samples.jsonl."),
    )
    return document(f"{overview.dataset(run)}: crs_jax report", body)


def _contents(sections: list[Html]) -> Html:
    """Links to the sections, read off their anchors and titles."""
    links = []
    for part in sections:
        found = re.match(r'<section id="([\w-]+)"><h2>([^<]*)</h2>', part)
        assert found, part[:80]
        links.append(tag("a", Html(found[2]), href=f"#{found[1]}"))
    return tag("nav", *links, aria_label="Sections")


def main(argv: Sequence[str]) -> None:
    """Writes the report of a run that has ended."""
    parser = Parser(prog="python -m crs_jax.report")
    parser.add_argument("--workdir", required=True, help=argparse.SUPPRESS)
    workdir = pathlib.Path(parser.parse_args(argv).workdir).expanduser()
    for name in ("config.json", "metrics.json"):
        if not (workdir / name).is_file():
            raise InputError(f"--workdir={workdir}: there is no {name}; give the workdir of a run that has ended")
    print(write_report(workdir))
