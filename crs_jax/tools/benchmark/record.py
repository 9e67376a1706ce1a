"""What a run has found so far: machine, versions, peaks and cells, and what follows from them."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import time
from typing import Any

from crs_jax.runtime import source_tree
from crs_jax.tools.benchmark.findings import depth, growth
from crs_jax.tools.benchmark.plan import Cell, parse

Record = dict[str, Any]


def begin(command: str, commit: str) -> Record:
    """An empty record with what is known before anything runs."""
    return {
        "command": command,
        "commit": commit or source_tree.commit() or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": machine(),
        "device": {},
        "versions": {"python": platform.python_version()},
        "peaks": {},
        "cells": [],
        "left_out": [],
    }


def machine() -> dict[str, Any]:
    """Processor and cores of the host."""
    name = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        name = found[1] if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "cores": cores, "system": platform.system()}


def device_name(record: Record) -> str:
    """Of the device, fit for a file's name."""
    kind = record["device"].get("kind", "unknown")
    if record["device"].get("platform") == "cpu":
        kind = f"cpu {record['machine']['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def derive(record: Record) -> None:
    """Fills in, for every measured cell, what follows from the times.

    tokens_per_second; `mfu`, counted operations a second over those of the large matrix product; of rollouts `mbu`, the
    bytes that a decode step must read, over its time, over the bandwidth of the large copy; `of_training_bytes`, the
    program's memory over that of parameters, gradients and Adam's moments; `shares`, of iterations, the share of each
    part whose cell has the same shapes; `torch_time_ratio`, the time here over the time in torch, below 1 where this is
    faster, and `torch_fastest_ratio`, that of the fastest runs, which other programs on the machine disturb least. Of
    cells together, `growth` and `depth` (`findings.py`).
    """
    peaks, done = record["peaks"], {c["cell"]: c for c in record["cells"] if "seconds" in c}
    for text, cell in done.items():
        cell["tokens_per_second"] = cell["tokens"] / cell["seconds"]
        if peaks and "flops" in cell:
            cell["mfu"] = cell["flops"] / cell["seconds"] / peaks["matmul_flops_per_second"]
        if peaks and cell.get("step_seconds"):
            cell["mbu"] = cell["step_bytes"] / cell["step_seconds"] / peaks["copy_bytes_per_second"]
        if "training_bytes" in cell and "peak_bytes" in cell:
            cell["of_training_bytes"] = cell["peak_bytes"] / cell["training_bytes"]
        other = done.get(f"torch-{text}")
        if other:
            cell["torch_time_ratio"] = cell["seconds"] / other["seconds"]
            cell["torch_fastest_ratio"] = cell["fastest"] / other["fastest"]
        if cell["part"] == "iteration":
            cell["shares"] = shares(cell, list(done.values()))
    record["growth"], record["depth"] = growth(list(done.values())), depth(list(done.values()))


def shares(whole: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, float]:
    """Share of an iteration's time by part, as far as cells with its shapes were measured; `rest` where all were."""
    found: dict[str, float] = {}
    for cell in cells:
        if any(cell[name] != whole[name] for name in ("size", "lengths", "group", "model")):
            continue
        times = {"rollout": 1, "scoring": 1, "update": whole["updates"]}.get(cell["part"], 0)
        contexts = whole["contexts"] // whole["minibatches"] if cell["part"] == "update" else whole["contexts"]
        if times and cell["contexts"] == contexts:
            found[cell["part"]] = times * cell["seconds"] / whole["seconds"]
    if len(found) == 3:
        found["rest"] = 1.0 - sum(found.values())
    return found


def described(cell: Cell, config: Any) -> dict[str, Any]:
    """A cell's settings as they were resolved."""
    c, d, m = config.ppo, config.data, config.model
    update = cell.work == "update"
    return {
        "part": cell.part,
        "size": cell.size,
        "contexts": c.contexts // c.minibatches if update else c.contexts,
        "group": c.group,
        "lengths": [d.context_tokens, d.reply_tokens],
        "minibatches": 1 if update else c.minibatches,
        "epochs": c.epochs,
        "rows": [config.sft.rows, config.sft.row_tokens],
        "model": {"layers": m.layers, "width": m.width, "heads": m.heads, "remat": m.remat, "dtype": m.dtype},
    }


def lost(text: str, error: str) -> dict[str, Any]:
    """The entry of a cell that failed."""
    cell = parse(text)
    return {"cell": text, "part": cell.part, "size": cell.size, "error": error}
