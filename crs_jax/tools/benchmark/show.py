"""The record as a table for the console and as a picture."""

from __future__ import annotations

import pathlib
from typing import Any

from crs_jax.tools.benchmark.findings import sentences

COLUMNS = (
    "cell",
    "tokens/s",
    "seconds",
    "spread",
    "MFU",
    "MBU",
    "compile s",
    "peak GB",
    "/ training",
    "/ torch",
    "fastest",
)


def table(record: dict[str, Any]) -> str:
    """One line a cell, then the shares of each iteration, and what cells say beside each other.

    `spread` is the distance of the quartiles over the median; `peak GB` the compiled program's memory (torch: what was
    allocated); `/ training` that over parameters, gradients and Adam's moments; `/ torch` the time over torch's, of
    medians, and `fastest` that of the fastest runs.
    """
    lines = [COLUMNS]
    for cell in record["cells"]:
        if "error" in cell:
            lines.append((cell["cell"], f"failed: {cell['error'].splitlines()[0][:70]}", *[""] * 9))
            continue
        spread = (cell["upper_quartile"] - cell["lower_quartile"]) / cell["seconds"]
        peak = cell.get("peak_bytes", cell.get("device_peak_bytes"))
        lines.append((
            cell["cell"], f"{cell['tokens_per_second']:,.0f}", f"{cell['seconds']:.4g}", f"{spread:.0%}",
            _percent(cell.get("mfu")), _percent(cell.get("mbu")), _number(cell.get("compile_seconds"), ".1f"),
            _number(None if peak is None else peak / 1e9, ".2f"), _number(cell.get("of_training_bytes"), ".2f"),
            _number(cell.get("torch_time_ratio"), ".2f"), _number(cell.get("torch_fastest_ratio"), ".2f"),
        ))  # fmt: skip
    measured = [line for line in lines if not line[1].startswith("failed")]
    widths = [max(len(line[n]) for line in measured) for n in range(len(COLUMNS))]
    widths[0] = max(len(line[0]) for line in lines)
    text = []
    for line in lines:
        right = [value.rjust(width) for value, width in zip(line[1:], widths[1:], strict=True)]
        if line[1].startswith("failed"):
            right = [line[1]]
        text.append("  ".join([line[0].ljust(widths[0]), *right]).rstrip())
    peaks = record["peaks"]
    host, device = record["machine"], record["device"].get("kind", "unknown device")
    head = [f"{device}, {host['processor']}, {host['cores']} cores, commit {record['commit']}"]
    if peaks:
        head.append(
            f"measured peaks: {peaks['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s ({peaks['dtype']} matrix product), "
            f"{peaks['copy_bytes_per_second'] / 1e9:.4g} GB/s (copy, read and write)"
        )
    foot = [
        f"{cell['cell']}: " + ", ".join(f"{part} {share:.0%}" for part, share in cell["shares"].items())
        for cell in record["cells"]
        if cell.get("shares")
    ]
    left = [f"left out: {' '.join(record['left_out'])}"] if record["left_out"] else []
    return "\n".join([*head, "", *text, "", *foot, *sentences(record), *left])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def plot(record: dict[str, Any], path: pathlib.Path) -> None:
    """Three panels: utilisation by cell, an iteration's time by part, and time over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = [c for c in record["cells"] if "seconds" in c and not c["part"].startswith("torch-")]
    if not done:
        return
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(20, max(4.0, 0.3 * len(done) + 1.5)))
    names = [c["cell"] for c in done]
    for offset, name, colour in ((-0.2, "mfu", "#2b6cb0"), (0.2, "mbu", "#c2521b")):
        values = [100 * c.get(name, 0.0) for c in done]
        left.barh([y + offset for y in range(len(done))], values, 0.4, color=colour, label=name.upper())
    left.set_yticks(range(len(done)), names, fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("% of the measured peak")
    left.legend(frameon=False)

    parts = {"rollout": "#2b6cb0", "scoring": "#3d7a57", "update": "#c2521b", "rest": "#7a828c"}
    shared = [c for c in done if c.get("shares")]
    for y, cell in enumerate(shared):
        at = 0.0
        for part, colour in parts.items():
            share = 100 * max(cell["shares"].get(part, 0.0), 0.0)
            middle.barh(y, share, 0.6, at, color=colour, label=part if y == 0 else None)
            at += share
    middle.set_yticks(range(len(shared)), [c["cell"] for c in shared], fontsize=7)
    middle.invert_yaxis()
    middle.set_xlabel("% of an iteration's time")
    if shared:
        middle.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)

    for (part, size), colour in zip(dict.fromkeys((c["part"], c["size"]) for c in done), _colours(), strict=False):
        points = sorted((c["tokens"], c["seconds"]) for c in done if (c["part"], c["size"]) == (part, size))
        if len(points) > 1:
            right.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{part} {size}", markersize=4)
    right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
    if right.lines:
        right.legend(frameon=False, fontsize=8)
    else:
        right.set_visible(False)
    figure.suptitle(f"{record['device'].get('kind', '')} · commit {record['commit']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _colours() -> list[str]:
    return ["#2b6cb0", "#c2521b", "#3d7a57", "#7b57a8", "#7a828c", "#b8860b", "#008b8b", "#8b0000"] * 4
