"""Many runs of one config: named cells of changed settings, each with several seeds, and one table at the end."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from crs_jax.runtime.errors import InputError, InterruptedRunError
from crs_jax.runtime.json_files import write_atomically, write_json
from crs_jax.runtime.metrics import METRICS_LINES
from crs_jax.runtime.progress import duration, say
from crs_jax.runtime.python_file import import_file
from crs_jax.runtime.versions import read_log, read_versioned
from crs_jax.tools.report.figures import Figure
from crs_jax.tools.sweep.children import execute, passing_on
from crs_jax.tools.sweep.finished_runs import RECORD, is_done, record, resolved, share, twin
from crs_jax.tools.sweep.page import MOST_LINES, Plot, chart, explain, markdown, page
from crs_jax.tools.sweep.seeds import summary


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file names `SWEEP`.

    Attributes:
      config: config file of all runs, with its variant.
      cells: by name, settings that differ from the config: `{"no text": {"model.leave_out": "('text',)"}}`. In a text
        `{out}` stands for the sweep's folder and `{seed}` for the run's seed, so that a cell can name the workdir of
        one before it, `{out}/movies-{seed}` that of the cell `movies`.
      measures: by name, where a run left the number: `ranking.sft.fresh.full.hr@10` in metrics.json, or
        `head:validation/hr@10`, the last such value of a stage in metrics.jsonl. Of a section of sentences (`health`)
        it is how many there are.
      reference: the cell that differences are to.
      seeds: of each cell.
      fixed: settings of every cell.
      plots: by title, what the page draws beside the measures: `Plot("data.window", ("HR@10 sft", "HR@10 ppo"))`, or
        `Plot("KL", ("utility",), {"engagement": ("engagement, KL 1", "engagement, KL 0.1")})`.
    """

    config: str
    cells: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, str]
    reference: str
    seeds: Sequence[int] = (0, 1, 2)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plots: Mapping[str, Plot] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reference not in self.cells:
            raise InputError(f"sweep: the reference {self.reference!r} is no cell; cells are {', '.join(self.cells)}")
        if len({file_name(title) for title in self.plots}) < len(self.plots):
            raise InputError("sweep: two plots differ in signs alone, so that their pictures would have one name")
        for title, plot in self.plots.items():
            wrong = [name for name in plot.y if name not in self.measures]
            wrong += [cell for cells in plot.lines.values() for cell in cells if cell not in self.cells]
            if plot.x not in self.measures and not all(plot.x in self.settings(cell) for cell in self.cells):
                wrong.append(plot.x)
            if wrong:
                raise InputError(f"sweep: the plot {title!r} names {wrong[0]!r}, which the sweep has not")
            if len(plot.y) * max(len(plot.lines), 1) > MOST_LINES:
                raise InputError(f"sweep: the plot {title!r} has more than {MOST_LINES} lines; make two of it")

    def settings(self, cell: str) -> dict[str, Any]:
        """Of every run of a cell."""
        return {**self.fixed, **self.cells[cell]}

    def waits(self, cell: str) -> bool:
        """Whether the cell's runs name what others leave, so that they come after all cells before it."""
        return any("{out}" in str(value) for value in self.settings(cell).values())


def load(path: pathlib.Path) -> Sweep:
    """`SWEEP` of a Python file; `InputError` where there is none."""
    if not path.is_file():
        raise InputError(f"--sweep={path}: there is no such file")
    found = getattr(import_file(path, "sweep"), "SWEEP", None)
    if not isinstance(found, Sweep):
        raise InputError(f"--sweep={path}: no SWEEP = Sweep(...) stands there")
    return found


def workdir_of(cell: str, seed: int, out: pathlib.Path) -> pathlib.Path:
    """Where the run of a cell and a seed works."""
    return out / f"{cell.replace(' ', '_')}-{seed}"


def check(sweep: Sweep, cell: str, line: Sequence[str]) -> ConfigDict:
    """The config of a run's command line; `InputError` names the cell whose settings cannot be used."""
    try:
        return resolved(line[3:])
    except InputError as error:
        raise InputError(f"sweep: the cell {cell!r}: {error}") from None


def command(sweep: Sweep, cell: str, seed: int, out: pathlib.Path, more: Sequence[str]) -> list[str]:
    """The run of a cell and a seed."""
    settings = {**sweep.settings(cell), "seed": seed, "data.cache_dir": out / "cache"}
    texts = {
        name: str(value).replace("{out}", str(out)).replace("{seed}", str(seed)) for name, value in settings.items()
    }
    flags = [f"--config.{name}={value}" for name, value in texts.items()]
    workdir = workdir_of(cell, seed, out)
    return [sys.executable, "-m", "crs_jax.main", f"--config={sweep.config}", f"--workdir={workdir}", *flags, *more]


def read(workdir: pathlib.Path, where: str) -> Figure:
    """A measure of a finished run, with its interval where the run gives one; NaN where the run has no such measure."""
    if ":" in where:
        stage, name = where.split(":", 1)
        lines = [line for line in read_log(workdir / METRICS_LINES) if line["stage"] == stage]
        values = [line[name] for line in lines if name in line]
        return _figure(values[-1] if values else None)
    *path, last = where.split(".")
    table: Any = read_versioned(workdir / "metrics.json")
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    table = table if isinstance(table, dict) else {}
    found = table.get(last)
    if isinstance(found, dict):
        if all(isinstance(text, str) for text in found.values()):
            return Figure(float(len(found)))
        return _figure(found.get("value"), found.get("low"), found.get("high"))
    ends = ("low", "high") if last == "difference" else (f"{last}-low", f"{last}-high")
    return _figure(found, *(table.get(end) for end in ends))


def _figure(value: Any, low: Any = None, high: Any = None) -> Figure:
    if value is None:
        return Figure(math.nan)
    return Figure(float(value)) if low is None or high is None else Figure(float(value), float(low), float(high))


def side_by_side(sweep: Sweep, one: Callable[[int, str], None], jobs: int) -> None:
    """Calls `one` for every seed and cell, `jobs` at a time, in the order of seeds and then of cells.

    The other cells of a seed wait for its first, whose models they may share, and one that names `{out}` for all before
    it. Nothing new begins after one has failed; its error is raised.
    """
    cells = list(sweep.cells)
    waiting = [(seed, cell) for seed in sweep.seeds for cell in cells]
    ended: set[tuple[int, str]] = set()
    failed, changed = threading.Event(), threading.Condition()

    def ready(seed: int, cell: str) -> bool:
        before = cells[: cells.index(cell)]
        return all((seed, other) in ended for other in (before if sweep.waits(cell) else before[:1]))

    def work() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: failed.is_set() or not waiting or any(ready(*task) for task in waiting))
                if failed.is_set() or not waiting:
                    return
                task = next(task for task in waiting if ready(*task))
                waiting.remove(task)
            try:
                one(*task)
            except BaseException:
                failed.set()
                raise
            finally:
                with changed:
                    ended.add(task)
                    changed.notify_all()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work) for _ in range(jobs)]:
            worker.result()


def run(sweep: Sweep, out: pathlib.Path, more: Sequence[str], jobs: int = 1) -> dict[str, dict[int, dict[str, Figure]]]:
    """Runs what is not done, `jobs` runs at a time; returns measures by cell and seed.

    A run that fails ends the sweep, naming its log; runs that have begun are let end.
    """
    out.mkdir(parents=True, exist_ok=True)
    total, spent = len(sweep.seeds) * len(sweep.cells), list[float]()
    for cell in sweep.cells:
        if not sweep.waits(cell):  # what it names is not there yet
            check(sweep, cell, command(sweep, cell, sweep.seeds[0], out, more))

    def one(seed: int, cell: str) -> None:
        line, workdir = command(sweep, cell, seed, out, more), workdir_of(cell, seed, out)
        config = check(sweep, cell, line)
        if is_done(workdir, config):
            return
        others = [done.parent for done in sorted(out.glob(f"*/{RECORD}")) if done.parent != workdir]
        if workdir.is_symlink():  # to a run that it was the same as, and is no more
            workdir.unlink()
        if not workdir.exists() and (same := twin(config, others)):
            say(f"sweep: {cell}, seed {seed} is {same.name}")
            workdir.symlink_to(same.name)
            return
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / RECORD).unlink(missing_ok=True)
        shared = share(config, workdir, others)
        after = f", with the models of {shared}" if shared else ""
        left = f", {duration(statistics.mean(spent) * (total - len(spent)) / jobs)} left at most" if spent else ""
        say(f"sweep: {cell}, seed {seed}{after}{left}")
        start, log = time.monotonic(), workdir / "log.txt"
        with log.open("w", encoding="utf-8") as stream:
            code = execute(line, stdout=stream, stderr=subprocess.STDOUT).returncode
        if code:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise InputError(f"sweep: {cell}, seed {seed} ended with status {code} ({log}): {''.join(last)}")
        spent.append(time.monotonic() - start)
        record(workdir, line[1:], config, spent[-1])

    side_by_side(sweep, one, jobs)
    return {
        cell: {
            seed: {name: read(workdir_of(cell, seed, out), where) for name, where in sweep.measures.items()}
            for seed in sweep.seeds
        }
        for cell in sweep.cells
    }


def file_name(title: str) -> str:
    """Of a plot's picture."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def write(
    sweep: Sweep, out: pathlib.Path, found: Mapping[str, Mapping[int, Mapping[str, Figure]]], title: str, line: str
) -> str:
    """Writes `title`.md, .json, .html and a picture of each plot; returns the tables in Markdown."""
    measures, reference = list(sweep.measures), sweep.reference
    summed = summary(found, measures, reference)
    text = markdown(summed, measures, reference)
    explained = explain(sweep.seeds, len(sweep.cells), len(measures))
    write_atomically(out / f"{title}.md", f"`{line}`\n\n{explained}\n\n{text}\n")
    by_seed = {
        cell: {str(seed): {name: figure.value for name, figure in values.items()} for seed, values in seeds.items()}
        for cell, seeds in found.items()
    }
    write_json(out / f"{title}.json", {"command": line, "reference": reference, "cells": by_seed, "summary": summed})
    xs = {plot.x for plot in sweep.plots.values()} - set(measures)
    settings = {cell: {x: float(sweep.settings(cell)[x]) for x in xs} for cell in sweep.cells}
    charts = [chart(name, plot, summed, settings) for name, plot in sweep.plots.items()]
    for drawn in charts:
        write_atomically(out / f"{title}-{file_name(drawn.title)}.svg", drawn.file())
    figures = [drawn.figure() for drawn in charts]
    write_atomically(out / f"{title}.html", page(title, line, explained, summed, reference, figures))
    return text


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    given = {"sweep": "", "out": "", "jobs": "1", "seeds": ""}
    more = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name in given and value:
            given[name] = value
        elif argument.startswith("--config."):
            more.append(argument)
        else:
            say(f"error: {argument}: use --sweep=FILE, --out=FOLDER, --jobs=N, --seeds=N,N and --config.SETTING=VALUE")
            return 2
    try:
        if not (given["sweep"] and given["out"]):
            raise InputError("--sweep=FILE and --out=FOLDER are both needed")
        if not given["jobs"].isdigit() or given["jobs"] == "0":
            raise InputError(f"--jobs={given['jobs']}: give how many runs may go on at a time, at least 1")
        out = pathlib.Path(given["out"]).expanduser().absolute()
        sweep = load(pathlib.Path(given["sweep"]))
        if given["seeds"]:
            if not all(seed.isdigit() for seed in given["seeds"].split(",")):
                raise InputError(f"--seeds={given['seeds']}: give whole numbers, such as 0,1")
            sweep = dataclasses.replace(sweep, seeds=tuple(map(int, given["seeds"].split(","))))
        with passing_on():
            found = run(sweep, out, more, int(given["jobs"]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as stop:
        print(f"sweep: {stop}: the same command continues", file=sys.stderr)
        return stop.status
    name = pathlib.Path(given["sweep"]).stem
    text = write(sweep, out, found, name, shlex.join(["python", "-m", "crs_jax.sweep", *arguments]))
    say(text)
    say(f"sweep: {out / f'{name}.html'}")
    return 0
