"""What cells say beside each other: whether time grows linearly in tokens, and what depth costs to compile."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any


def growth(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By part, size, group and depth, over cells that differ in rows and lengths alone (rollouts: in rows alone, since
    their tokens are those of replies).

    `exponent` is the slope of log time over log tokens by least squares: 1 is linear, below it small batches waste
    time, above it something grows faster than the work. `from` and `to` are tokens.
    """
    groups: dict[tuple, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in cells:
        if not cell["part"].startswith("torch-"):
            fixed = (cell["lengths"][0] if cell["part"] == "rollout" else 0, cell["minibatches"], cell["epochs"])
            groups[cell["part"], cell["size"], cell["group"], *cell["model"].values(), *fixed].append(cell)
    found = {}
    for (part, size, group, *_), some in groups.items():
        points = sorted({(c["tokens"], c["seconds"]) for c in some})
        x, y = ([math.log(p[axis]) for p in points] for axis in (0, 1))
        if len(set(x)) < 2:
            continue
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
        layers = some[0]["model"]["layers"]
        found[f"{part}:{size}, {layers} layers, group {group}"] = {
            "exponent": slope,
            "cells": len(points),
            "from": points[0][0],
            "to": points[-1][0],
        }
    return found


def depth(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By part and size: compile seconds of the deepest model over those of the shallowest, the rest being alike."""
    groups: dict[tuple, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in cells:
        if "compile_seconds" in cell:
            shape = {name: value for name, value in cell["model"].items() if name != "layers"}
            key = (cell["part"], cell["size"], cell["contexts"], cell["group"], *cell["lengths"], *shape.values())
            groups[key].append(cell)
    found = {}
    for (part, size, *_), some in groups.items():
        some = sorted(some, key=lambda cell: cell["model"]["layers"])
        first, last = some[0], some[-1]
        if first["model"]["layers"] < last["model"]["layers"]:
            found[f"{part}:{size}"] = {
                "layers": [first["model"]["layers"], last["model"]["layers"]],
                "ratio": last["compile_seconds"] / first["compile_seconds"],
            }
    return found


def sentences(record: dict[str, Any]) -> list[str]:
    """Both in words."""
    lines = [
        f"{name}: time grows as tokens to the {f['exponent']:.2f} ({f['cells']} cells, {f['from']:,} to {f['to']:,})"
        for name, f in record.get("growth", {}).items()
    ]
    for name, f in record.get("depth", {}).items():
        few, many = f["layers"]
        lines.append(f"{name}: {many} layers compile in {f['ratio']:.2f} times the time of {few}")
    return lines
