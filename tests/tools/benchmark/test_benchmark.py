"""The small form from end to end, and what happens to the others when a cell fails."""

import json
import math
import pathlib
import subprocess
import sys

import pytest
from waits import HANGS

from crs_jax.tools.benchmark import program as program
from crs_jax.tools.benchmark import record as records
from crs_jax.tools.benchmark import show, timing, worker
from crs_jax.tools.benchmark.worker import Order

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two parts on both sides, one cell that cannot be, and one with settings of its own."""
    out = tmp_path_factory.mktemp("benchmark") / "small.json"
    cells = ["rollout:tiny", "rollout:tiny:4x1:2000+8", "scoring:tiny", "torch-rollout:tiny"]
    line = [sys.executable, "-m", "crs_jax.benchmark", "--plan=small", f"--cells={' '.join(cells)}", f"--out={out}"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert out.is_file(), run.stderr
    return json.loads(out.read_text()), run, out


def test_record_says_on_what(small):
    record, _, out = small
    assert record["device"]["platform"]
    assert {"python", "jax", "jaxlib", "flax"} <= set(record["versions"])
    assert record["command"].startswith("python -m crs_jax.benchmark")
    assert record["commit"]
    assert record["peaks"]["matmul_flops_per_second"] > 1e8
    assert record["peaks"]["copy_bytes_per_second"] > 1e7
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_measures_are_positive_and_finite(small):
    record, run, _ = small
    done = {c["cell"]: c for c in record["cells"] if "error" not in c}
    assert {"rollout:tiny", "scoring:tiny"} <= set(done)
    for name, cell in done.items():
        names = ["seconds", "fastest", "runs", "tokens", "tokens_per_second"]
        if not name.startswith("torch"):
            names += ["mfu", "compile_seconds", "peak_bytes", "flops"]
        for measure in names:
            assert math.isfinite(cell[measure]), (name, measure)
            assert cell[measure] > 0, (name, measure)
        assert cell["fastest"] <= cell["seconds"] <= cell["slowest"]
        assert name in run.stdout
    rollout = done["rollout:tiny"]
    assert rollout["full_length"] > 0.9
    assert rollout["step_bytes"] > 0
    if "torch-rollout:tiny" in done:
        assert rollout["torch_time_ratio"] == rollout["seconds"] / done["torch-rollout:tiny"]["seconds"]


def test_a_cell_that_cannot_be_leaves_the_others(small):
    record, run, _ = small
    failed = [c for c in record["cells"] if "error" in c]
    assert [c["cell"] for c in failed] == ["rollout:tiny:4x1:2000+8"]
    assert "context_tokens" in failed[0]["error"]
    assert run.returncode == 1


def test_out_of_memory_leaves_the_others(capsys):
    def run(cell, config):
        if cell.batch == (8, 1):
            raise MemoryError("RESOURCE_EXHAUSTED: 1 TB" + "x" * 9999)
        return {"seconds": 1.0}

    worker.go_through(Order(("rollout:tiny:8x1", "rollout:tiny"), "configs/benchmark.py"), False, run)
    told = [json.loads(line.removeprefix(worker.MARK)) for line in capsys.readouterr().out.splitlines()]
    assert [t.get("begins") for t in told[::2]] == ["rollout:tiny:8x1", "rollout:tiny"]
    assert told[1]["error"].startswith("MemoryError: RESOURCE_EXHAUSTED")
    assert len(told[1]["error"]) <= worker.LONGEST_ERROR
    assert told[3]["found"]["seconds"] == 1.0


def a_run(tmp_path, monkeypatch, script):
    """A run whose workers tell what `script` has for them, one list after another."""
    given, _ = program.read([f"--out={tmp_path / 'r.json'}", "--commit=abc", "--plan=cpu"])
    run = program.Run(given, (), "command")
    orders = []

    def answers(order, small):
        orders.append(order.cells)
        yield from script[len(orders) - 1]

    monkeypatch.setattr(program, "answers", answers)
    run.go([program.parse(text) for text in ("rollout:tiny", "sft:tiny", "update:tiny")])
    return run, orders


FOUND = {
    "part": "rollout", "size": "tiny", "tokens": 10, "seconds": 2.0, "fastest": 1.0, "slowest": 3.0,
    "lower_quartile": 1.0, "upper_quartile": 3.0, "runs": 3, "contexts": 4, "group": 1, "lengths": [16, 8],
    "minibatches": 2, "epochs": 2, "model": {},
}  # fmt: skip


def test_a_worker_that_dies_is_replaced(tmp_path, monkeypatch):
    dies = [{"cell": "rollout:tiny", "found": FOUND}, {"begins": "sft:tiny"}, {"ended": -9}]
    goes_on = [{"begins": "update:tiny"}, {"cell": "update:tiny", "found": FOUND | {"part": "update"}}, {"ended": 0}]
    run, orders = a_run(tmp_path, monkeypatch, [dies, goes_on])
    assert orders == [("rollout:tiny", "sft:tiny", "update:tiny"), ("update:tiny",)]
    cells = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert [("error" in c, c["cell"]) for c in cells] == [
        (False, "rollout:tiny"), (True, "sft:tiny"), (False, "update:tiny"),
    ]  # fmt: skip
    assert "status -9" in show.table(run.record)


def test_one_that_never_begins_is_not(tmp_path, monkeypatch):
    run, orders = a_run(tmp_path, monkeypatch, [[{"ended": 1}]])
    assert len(orders) == 1
    assert len([c for c in run.record["cells"] if "error" in c]) == 3


def test_budget(tmp_path, monkeypatch):
    given, _ = program.read([f"--out={tmp_path / 'r.json'}", "--budget=0.001"])
    run = program.Run(given, (), "command")
    monkeypatch.setattr(program.time, "time", lambda: run.deadline + 1)
    run.go([program.parse("rollout:tiny")])
    assert run.record["left_out"] == ["rollout:tiny"]
    assert "left out: rollout:tiny" in show.table(run.record)


def test_shares_and_ratios():
    shape = {"size": "tiny", "contexts": 8, "group": 2, "lengths": [4, 4], "model": {"layers": 1}, "minibatches": 4}
    base = {**shape, "epochs": 2, "tokens": 10, "fastest": 1.0, "flops": 100}
    cells = [
        {**base, "cell": "iteration:tiny", "part": "iteration", "seconds": 10.0, "updates": 8},
        {**base, "cell": "rollout:tiny", "part": "rollout", "seconds": 2.0, "step_seconds": 0.5, "step_bytes": 30},
        {**base, "cell": "scoring:tiny", "part": "scoring", "seconds": 1.0},
        {**base, "cell": "update:tiny:2x2", "part": "update", "seconds": 0.75, "contexts": 2, "minibatches": 1},
        {**base, "cell": "update:tiny:8x2", "part": "update", "seconds": 3.0, "minibatches": 1},
        {**base, "cell": "torch-rollout:tiny", "part": "torch-rollout", "seconds": 8.0, "fastest": 4.0},
    ]
    record = {"cells": cells, "peaks": {"matmul_flops_per_second": 500.0, "copy_bytes_per_second": 120.0}}
    records.derive(record)
    assert cells[0]["shares"] == pytest.approx({"rollout": 0.2, "scoring": 0.1, "update": 0.6, "rest": 0.1})
    assert cells[1]["torch_time_ratio"] == 0.25
    assert cells[1]["torch_fastest_ratio"] == 0.25
    assert cells[1]["mfu"] == pytest.approx(100 / 2 / 500)
    assert cells[1]["mbu"] == pytest.approx(30 / 0.5 / 120)


def test_timing_repeats_until_the_time_is_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    found = timing.repeat(lambda: calls.append(0), timing.Patience(least=3, most=9, seconds=5.0))
    assert found["runs"] == 5
    assert len(calls) == 7  # two to warm up
    assert found["seconds"] == found["fastest"] == 1.0
