"""Measures how fast the program is, and how fast torch does the same work in the same run."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json
from crs_jax.tools.benchmark import record as records
from crs_jax.tools.benchmark import show
from crs_jax.tools.benchmark.plan import PARTS, Cell, named, parse, product
from crs_jax.tools.benchmark.worker import MARK, Order

FLAGS = {
    "sizes": "", "parts": "", "rows": "", "lengths": "", "cells": "", "plan": "", "config": "configs/benchmark.py",
    "out": "runs/benchmark/", "budget": "0", "seconds": "", "threads": "0", "commit": "", "same-memory": "false",
}  # fmt: skip
GRACE = 120.0  # seconds past the budget that a cell may take before its process is ended


def read(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Flags, and the settings for all cells; `InputError` for what is neither."""
    given, overrides = dict(FLAGS), []
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if argument == "--small":
            given["plan"] = "small"
        elif argument.startswith("--config."):
            overrides.append(argument)
        elif argument.startswith("--") and name in given and sign:
            given[name] = value
        else:
            raise InputError(f"{argument}: use --small, --config.NAME=VALUE, {', '.join(f'--{f}=' for f in FLAGS)}")
    for name in ("budget", "threads", "seconds"):
        try:
            float(given[name] or 0)
        except ValueError:
            raise InputError(f"--{name}={given[name]}: give a number") from None
    if given["same-memory"] not in ("true", "false"):
        raise InputError(f"--same-memory={given['same-memory']}: true or false")
    if given["plan"] not in ("", "small", "cpu", "gpu"):
        raise InputError(f"--plan={given['plan']}: there are small, cpu and gpu")
    return given, overrides


def cells_of(given: dict[str, str]) -> list[Cell]:
    """The cells that the flags choose, without those of torch where it is not installed."""
    torch = find_spec("torch") is not None and find_spec("transformers") is not None
    chosen = {name: [part for part in given[name].split(",") if part] for name in ("sizes", "parts", "rows", "lengths")}
    if given["cells"]:
        cells = [parse(text) for text in given["cells"].split()]
    elif any(chosen.values()) and given["plan"] != "small":
        parts = chosen["parts"] or [*PARTS, "torch"]
        cells = product(parts, chosen["sizes"] or ["16m"], chosen["rows"], chosen["lengths"])
    else:
        on_gpu = shutil.which("nvidia-smi") is not None and os.environ.get("JAX_PLATFORMS") != "cpu"
        cells = named(given["plan"] or ("gpu" if on_gpu else "cpu"), torch)
        cells = [c for c in cells if not chosen["parts"] or c.work in chosen["parts"]]
    return [cell for cell in cells if torch or not cell.torch]


def answers(order: Order, small: bool) -> Iterator[dict[str, Any]]:
    """What a worker tells, line by line; last `{"ended": status}`. It is ended `GRACE` after the deadline."""
    threads = {"OMP_NUM_THREADS": str(order.threads)} if order.threads else {}
    flags = os.environ.get("XLA_FLAGS", "") + (" --xla_backend_optimization_level=0" if small else "")
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "HF_HUB_OFFLINE": "1", **os.environ, **threads}
    environment |= {"XLA_FLAGS": flags.strip(), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    line = [sys.executable, "-m", "crs_jax.tools.benchmark.worker", json.dumps(asdict(order))]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    left = order.deadline + GRACE - time.time()
    guard = threading.Timer(left, process.kill) if left < threading.TIMEOUT_MAX else None
    if guard:
        guard.daemon = True
        guard.start()
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith(MARK):
                yield json.loads(text.removeprefix(MARK))
            else:
                print(text, end="", file=sys.stderr)
        yield {"ended": process.wait()}
    finally:
        if guard:
            guard.cancel()
        if process.poll() is None:
            process.kill()


class Run:
    """A run: its record, where it is written, and what is still to do."""

    def __init__(self, given: dict[str, str], overrides: Sequence[str], command: str) -> None:
        self.given, self.overrides = given, tuple(overrides)
        self.record = records.begin(command, given["commit"])
        self.small = given["plan"] == "small"
        budget = float(given["budget"])
        self.deadline = time.time() + budget if budget else 1e12
        self.seconds = float(given["seconds"] or (0.2 if self.small else 3.0))
        self.half: bool | None = None

    @property
    def path(self) -> pathlib.Path:
        """Of the record."""
        out = pathlib.Path(self.given["out"]).expanduser()
        return out if out.suffix == ".json" else out / f"{records.device_name(self.record)}.json"

    def write(self) -> None:
        """The record as it stands."""
        records.derive(self.record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.record)

    def go(self, cells: Sequence[Cell]) -> None:
        """Measures the cells, those of one size and side after another in one process."""
        for _, group in itertools.groupby(cells, key=lambda cell: (cell.torch, cell.size)):
            left = [str(cell) for cell in group]
            while left:
                left = self.some(left)

    def some(self, texts: list[str]) -> list[str]:
        """Has a worker measure cells; those that are left where it died over one."""
        if time.time() > self.deadline:
            self.record["left_out"] += texts
            self.write()
            return []
        torch = parse(texts[0]).torch
        order = Order(
            tuple(texts), self.given["config"], self.overrides, self.deadline, self.small, self.seconds,
            peaks=not torch and not self.record["peaks"], half=self.half, threads=int(self.given["threads"]),
            same_memory=self.given["same-memory"] == "true",
        )  # fmt: skip
        begun, left = "", list(texts)
        for told in answers(order, self.small):
            begun = told.get("begins", begun)
            self.take(told)
            if "cell" in told:
                left.remove(told["cell"])
            if told.get("ended"):  # over one cell; or over all, where it did not come to the first
                for text in [begun] if begun in left else list(left):
                    self.add(records.lost(text, f"the process ended with status {told['ended']}"))
                    left.remove(text)
        return left

    def take(self, told: dict[str, Any]) -> None:
        """One line of a worker into the record."""
        for name in ("versions", "peaks", "device"):
            self.record[name] |= told.get(name, {})
        if "device" in told:
            self.half = told["device"]["platform"] != "cpu"
        if "left_out" in told:
            self.record["left_out"].append(told["cell"])
        elif "error" in told:
            self.add(records.lost(told["cell"], told["error"]))
        elif "found" in told:
            self.add({"cell": told["cell"], **told["found"]})

    def add(self, cell: dict[str, Any]) -> None:
        """A cell into the record, and a line to the console."""
        self.record["cells"].append(cell)
        self.write()
        said = f"failed: {cell['error']}" if "error" in cell else f"{cell['seconds']:.4g} s"
        print(f"{time.strftime('%H:%M:%S')} {cell['cell']}: {said}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status: 1 where a cell failed, 2 for flags that cannot be used."""
    try:
        given, overrides = read(arguments)
        cells = cells_of(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run = Run(given, overrides, shlex.join(["python", "-m", "crs_jax.benchmark", *arguments]))
    run.go(cells)
    run.write()
    print(show.table(run.record))
    show.plot(run.record, run.path.with_suffix(".png"))
    print(f"benchmark: {run.path} and {run.path.with_suffix('.png')}")
    return 1 if any("error" in cell for cell in run.record["cells"]) else 0
