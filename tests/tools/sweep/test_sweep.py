"""Sweeps: which runs they start, what they skip, what they read, the table by hand, and a small real one."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types
import xml.etree.ElementTree
from unittest import mock

import pytest
from commands import start
from waits import HANGS

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import read_json, read_json_lines, write_json, write_json_lines
from crs_jax.tools.report.figures import Figure
from crs_jax.tools.sweep import program as sweep
from crs_jax.tools.sweep.finished_runs import record, resolved, share
from crs_jax.tools.sweep.program import Plot, Sweep

SMALL = {
    "simulator.catalogue_size": 24,
    "simulator.train_dialogues": 40,
    "simulator.test_dialogues": 10,
    "data.validation_dialogues": 8,
    "tokenizer.vocab_size": 400,
    "encoder.max_tokens": 16,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
}
ROOT = pathlib.Path(__file__).resolve().parents[3]
PLAN = Sweep(
    config="configs/quickstart.py",
    fixed={"stages": "sft"},
    cells={"all": {}, "no text": {"model.leave_out": "('text',)"}},
    measures={"hr": "ranking.sft.fresh.full.hr@10", "loss": "head:validation/loss"},
    reference="all",
    seeds=(3, 5),
)
VALUES = {("all", 3): 0.2, ("all", 5): 0.3, ("no_text", 3): 0.15, ("no_text", 5): 0.21}


@pytest.fixture
def started(monkeypatch):
    """Stands for the program: leaves the metrics of VALUES, and notes the command lines."""
    lines = []

    def run(line, stdout, stderr):
        lines.append(line)
        workdir = pathlib.Path(next(flag for flag in line if flag.startswith("--workdir=")).removeprefix("--workdir="))
        name, seed = workdir.name.rsplit("-", 1)
        value = VALUES[name, int(seed)]
        write_json(workdir / "metrics.json", {"ranking": {"sft": {"fresh": {"full": {"hr@10": {"value": value}}}}}})
        logged = [
            {"stage": "head", "step": 1, "loss": 9.0},
            {"stage": "head", "step": 2, "validation/loss": 10 * value},
        ]
        write_json_lines(workdir / "metrics.jsonl", logged)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(sweep, "execute", run)
    return lines


def test_runs_measures_and_table(started, tmp_path):
    found = sweep.run(PLAN, tmp_path, ["--config.data.dir=configs"])
    assert len(started) == 4
    assert "--config.model.leave_out=('text',)" in started[1]
    assert all(flag in started[1] for flag in ("--config.stages=sft", "--config.seed=3", "--config.data.dir=configs"))
    assert f"--config.data.cache_dir={tmp_path / 'cache'}" in started[0]
    assert found["no text"][5] == {"hr": Figure(0.21), "loss": Figure(pytest.approx(2.1))}
    # Means .25 and .18, standard errors .05 and .03; differences -.05 and -.09: mean -.07, standard error .02. With two
    # seeds t is Cauchy's: 12.7062 at 97.5 %, and p = 1 - 2 atan(3.5) / pi = .177.
    lines = sweep.write(PLAN, tmp_path, found, "plan", "the command").splitlines()
    assert lines[2] == "| all | 0.2500 (-0.3853 .. 0.8853) | 2.5000 (-3.8531 .. 8.8531) |"
    assert lines[3].startswith("| no text | 0.1800 (-0.2012 .. 0.5612) |")
    assert lines[5] == "Differences to all:"
    assert lines[9].startswith(
        "| no text | -0.0700 (-0.3241 .. +0.1841, p 0.177) | -0.7000 (-3.2412 .. +1.8412, p 0.177) |"
    )
    stored = read_json(tmp_path / "plan.json")
    assert stored["cells"]["no text"]["5"]["hr"] == 0.21
    assert stored["summary"]["no text"]["hr"]["difference"]["p"] == pytest.approx(1 - 2 * math.atan(3.5) / math.pi)


def test_what_is_done_is_skipped_and_another_setting_is_not(started, tmp_path):
    sweep.run(PLAN, tmp_path, [])
    sweep.run(PLAN, tmp_path, [])
    assert len(started) == 4
    sweep.run(PLAN, tmp_path, ["--config.model.width=64"])
    assert len(started) == 8


def test_models_are_shared_where_their_settings_are(started, tmp_path):
    """Cells that differ in what comes after a stage share it; in what comes before, not; seeds never do."""
    cells = {
        "all": {},
        "no sentiment": {"reward.gamma": 0.0, "algorithm": "rloo"},  # weights are read by PPO alone
        "another fit": {"reward.epochs": 1.0},
        "another policy": {"sft.epochs": 1.0},
    }
    plan = dataclasses.replace(PLAN, cells=cells, fixed={"stages": "sft,reward"}, seeds=(3,))
    values = {(cell.replace(" ", "_"), 3): 0.1 for cell in cells}
    run = sweep.execute

    def with_models(line, stdout, stderr):
        workdir = pathlib.Path(next(flag for flag in line if flag.startswith("--workdir=")).removeprefix("--workdir="))
        there = sorted(p.name for p in workdir.glob("checkpoints/*"))
        for stage in ("sft", "reward"):
            (workdir / "checkpoints" / stage).mkdir(parents=True, exist_ok=True)
        (workdir / "tokenizer").mkdir(exist_ok=True)
        (workdir / "found.json").write_text(json.dumps(there), encoding="utf-8")
        return run(line, stdout, stderr)

    with mock.patch.object(sweep, "execute", with_models), mock.patch.dict(VALUES, values):
        sweep.run(plan, tmp_path, [])
    found = {cell: json.loads((sweep.workdir_of(cell, 3, tmp_path) / "found.json").read_text()) for cell in cells}
    assert found == {
        "all": [], "no sentiment": ["reward", "sft"], "another fit": ["sft"], "another policy": [],
    }  # fmt: skip
    assert {"stage": "head", "step": 1, "loss": 9.0} in read_json_lines(tmp_path / "another_fit-3" / "metrics.jsonl")

    later = {"from another sweep": {"ppo.iterations": 3}, "another config": {"ppo.iterations": 3}}
    values = {(cell.replace(" ", "_"), 3): 0.1 for cell in later}
    with mock.patch.object(sweep, "execute", with_models), mock.patch.dict(VALUES, values):
        for cell, config in zip(later, (PLAN.config, "configs/redial_ppo.py:tiny"), strict=True):
            other = dataclasses.replace(plan, config=config, cells={cell: later[cell]}, reference=cell)
            sweep.run(other, tmp_path, ["--config.data.dir=configs"] if "redial" in config else [])
    found = {cell: json.loads((sweep.workdir_of(cell, 3, tmp_path) / "found.json").read_text()) for cell in later}
    assert found == {"from another sweep": ["reward", "sft"], "another config": []}


def test_seeds_run_side_by_side(started, tmp_path, capsys, monkeypatch):
    """Each first run waits for the other seed's to begin."""
    both, run = threading.Barrier(2, timeout=HANGS), sweep.execute

    def waiting(line, stdout, stderr):
        if "all-" in line[4]:
            both.wait()
        return run(line, stdout, stderr)

    monkeypatch.setattr(sweep, "execute", waiting)
    found = sweep.run(PLAN, tmp_path, [], jobs=2)
    assert len(started) == 4
    assert found["all"][3]["hr"].value == 0.2
    assert sweep.main(["--sweep=x", "--out=y", "--jobs=0"]) == 2
    assert "--jobs=0" in capsys.readouterr().err


def test_cells_of_a_seed_run_side_by_side_after_the_first():
    """Three at a time: one seed's other cells meet at a barrier, though not before its first has ended; a cell that
    names a workdir comes when all before it have ended.
    """
    cells = {"first": {}, "b": {}, "c": {}, "d": {}, "last": {"model.transfer": "{out}/c-{seed}"}}
    plan = dataclasses.replace(PLAN, cells=cells, reference="first", seeds=(3,))
    begun, ended, three = [], [], threading.Barrier(3, timeout=HANGS)

    def one(seed, cell):
        begun.append((cell, set(ended)))
        if cell in ("b", "c", "d"):
            three.wait()
        ended.append(cell)

    sweep.side_by_side(plan, one, 3)
    known = dict(begun)
    assert begun[0][0] == "first"
    assert len(begun) == 5
    assert all(known[cell] == {"first"} for cell in "bcd")
    assert known["last"] == {"first", "b", "c", "d"}


def test_nothing_begins_after_a_failure():
    begun = []

    def one(seed, cell):
        begun.append((seed, cell))
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        sweep.side_by_side(PLAN, one, 1)
    assert begun == [(3, "all")]


def test_other_seeds(started, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "load", lambda path: PLAN)
    line = ["--sweep=x/plan.py", f"--out={tmp_path}"]
    assert sweep.main([*line, "--seeds=5"]) == 0
    assert "One seed, 5." in (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert len(started) == 2
    assert sweep.main([*line, "--seeds=5,x"]) == 2
    assert "--seeds=5,x" in capsys.readouterr().err


def test_what_a_run_left_is_read_with_its_interval(tmp_path):
    interval = {"value": 0.3, "low": 0.2, "high": 0.4}
    metrics = {
        "ranking": {"sft": {"hr@10": interval, "none": None}},
        "simulator": {"utility_ppo": 0.6, "difference": 0.1, "low": 0.05, "high": 0.15},
        "liked": {
            "sft": {"auc": 0.7, "auc-low": 0.6, "auc-high": None},
            "ppo": {"auc": 0.7, "auc-low": 0.6, "auc-high": 0.8},
        },
        "health": {"kl": "KL is high", "length": "replies are short"},
    }
    write_json(tmp_path / "metrics.json", metrics)
    lines = [{"stage": "ppo", "step": 1, "clip": 0.1}, {"stage": "ppo", "step": 2, "clip": 0.3}]
    write_json_lines(tmp_path / "metrics.jsonl", [*lines, {"stage": "ppo", "step": 2, "validation/hr@10": 0.5}])
    expected = {
        "ranking.sft.hr@10": Figure(0.3, 0.2, 0.4),
        "simulator.difference": Figure(0.1, 0.05, 0.15),
        "simulator.utility_ppo": Figure(0.6),  # low and high there are the difference's
        "liked.sft.auc": Figure(0.7),
        "liked.ppo.auc": Figure(0.7, 0.6, 0.8),
        "health": Figure(2.0),
        "ppo:clip": Figure(0.3),
    }
    assert {where: sweep.read(tmp_path, where) for where in expected} == expected
    for missing in ("ranking.sft", "ranking.sft.none", "ranking.ppo.hr@10", "other", "ppo:kl", "ranking.sft.hr@10.x"):
        assert math.isnan(sweep.read(tmp_path, missing).value), missing


def test_a_cell_may_name_the_workdir_of_another(tmp_path):
    plan = dataclasses.replace(PLAN, cells={"all": {}, "after": {"model.init": "{out}/all-{seed}"}})
    assert f"--config.model.init={tmp_path}/all-5" in sweep.command(plan, "after", 5, tmp_path, [])


def test_a_run_that_takes_over_another_ones_policies_gets_no_models_to_share(tmp_path):
    line = sweep.command(PLAN, "all", 3, tmp_path, [])
    config, other = resolved(line[3:]), sweep.workdir_of("all", 3, tmp_path)
    (other / "checkpoints" / "sft").mkdir(parents=True)
    (tmp_path / "twin").mkdir()
    record(other, line, config, 1.0)
    with config.unlocked():
        config.model.transfer = "x"
    assert share(config, tmp_path / "taker", [other]) == ""
    assert not (tmp_path / "taker" / "checkpoints").exists()
    assert share(resolved(line[3:]), tmp_path / "twin", [other]) == "sft"


def test_a_run_whose_settings_are_those_of_another_is_that_one(started, tmp_path):
    """Also where one says what the other leaves at its default; not where a setting differs, and never another seed."""
    sweep.run(PLAN, tmp_path, [])
    assert len(started) == 4
    cells = {"same": {}, "said": {"reward.alpha": 1.0}, "other": {"reward.alpha": 0.5}}
    plan = dataclasses.replace(PLAN, cells=cells, reference="same", seeds=(3,))
    with mock.patch.dict(VALUES, {("other", 3): 0.9}):
        found = sweep.run(plan, tmp_path, [])
        assert len(started) == 5
        sweep.run(plan, tmp_path, [])
    assert len(started) == 5
    assert [found[cell][3]["hr"].value for cell in cells] == [0.2, 0.2, 0.9]
    assert (tmp_path / "said-3").readlink() == pathlib.Path("all-3")


def test_a_run_that_is_another_no_longer_has_a_folder_of_its_own(started, tmp_path):
    """Nothing is written into the other's."""
    sweep.run(PLAN, tmp_path, [])
    plan = dataclasses.replace(PLAN, cells={"said": {}}, reference="said", seeds=(3,))
    sweep.run(plan, tmp_path, [])
    assert len(started) == 4
    changed = dataclasses.replace(plan, cells={"said": {"evaluation.bootstrap": 7}})
    with mock.patch.dict(VALUES, {("said", 3): 0.9}):
        assert sweep.run(changed, tmp_path, [])["said"][3]["hr"].value == 0.9
    assert len(started) == 5
    assert not (tmp_path / "said-3").is_symlink()
    assert sweep.run(PLAN, tmp_path, [])["all"][3]["hr"].value == 0.2
    assert len(started) == 5


def test_a_run_is_not_done_while_it_runs_again(tmp_path, started, monkeypatch):
    sweep.run(PLAN, tmp_path, [])
    monkeypatch.setattr(sweep, "execute", lambda line, stdout, stderr: types.SimpleNamespace(returncode=1))
    with pytest.raises(InputError, match="status 1"):
        sweep.run(PLAN, tmp_path, ["--config.model.width=64"])
    assert not (tmp_path / "all-3" / "sweep.json").exists()


def test_a_cell_that_cannot_run_is_named_before_the_first_run(started, tmp_path):
    plan = dataclasses.replace(PLAN, cells={**PLAN.cells, "wrong": {"ppo.clip": -1.0}})
    with pytest.raises(InputError, match=r"the cell 'wrong': .*ppo\.clip"):
        sweep.run(plan, tmp_path, [])
    assert not started


def test_pictures_of_the_plots_stand_alone(tmp_path):
    """Well-formed SVG with the title, a legend of two lines, and a dot for each cell with a value."""
    cells = {"a": {"data.window": 2}, "b": {"data.window": 4}}
    plot = Plot("data.window", ("hr", "loss"))
    plan = dataclasses.replace(PLAN, cells=cells, reference="a", seeds=(3,), plots={"HR over <context>": plot})
    found = {
        cell: {3: {"hr": Figure(0.1 * n, 0.05, 0.3), "loss": Figure(n)}} for n, cell in enumerate(cells, 1)
    }  # fmt: skip
    sweep.write(plan, tmp_path, found, "plan", "the command")
    tree = xml.etree.ElementTree.parse(tmp_path / "plan-hr_over_context.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert tree.tag == f"{svg}svg"
    texts = [text.text for text in tree.iter(f"{svg}text")]
    assert texts[:3] == ["HR over <context>", "hr", "loss"]
    assert len([circle for circle in tree.iter(f"{svg}circle") if circle.get("r") == "2"]) == 4
    assert "HR over &lt;context&gt;" in (tmp_path / "plan.html").read_text(encoding="utf-8")


def test_plots_that_cannot_be_drawn():
    for plot, message in (
        (Plot("hr", ("mrr",)), "'mrr'"),
        (Plot("data.window", ("hr",)), "'data.window'"),  # no cell sets it
        (Plot("loss", ("hr",), {"one": ("all", "none")}), "'none'"),
        (Plot("loss", ("hr",), {str(n): ("all",) for n in range(5)}), "more than 4 lines"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(PLAN, plots={"a plot": plot})


def test_a_run_that_fails_ends_the_sweep_with_its_last_line(monkeypatch, tmp_path):
    def fail(line, stdout, stderr):
        stdout.write("starting\nerror: no such thing\n")
        return types.SimpleNamespace(returncode=2)

    monkeypatch.setattr(sweep, "execute", fail)
    with pytest.raises(InputError, match=r"all, seed 3 ended with status 2 \(.*log.txt\): error: no such thing"):
        sweep.run(PLAN, tmp_path, [])


def test_files_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    assert sweep.main([f"--sweep={tmp_path / 'empty.py'}", f"--out={tmp_path}"]) == 2
    assert "no SWEEP" in capsys.readouterr().err
    assert sweep.main([f"--sweep={tmp_path / 'none.py'}", f"--out={tmp_path}"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert sweep.main(["--sweep=x"]) == 2
    with pytest.raises(InputError, match="'b' is no cell"):
        Sweep("c", {"a": {}}, {}, "b")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_sweep_files_name_settings_that_exist(path):
    from absl import flags

    from crs_jax import flags as command_line

    plan = sweep.load(path)
    for cell in plan.cells:
        line = sweep.command(plan, cell, 0, pathlib.Path("out"), [f"--config.data.dir={ROOT}"])
        command_line.parse(["main", *line[3:]], flags.FlagValues())


def test_a_small_sweep_runs(tmp_path):
    plan = f"""
from crs_jax.tools.sweep.program import Sweep
SWEEP = Sweep("configs/quickstart.py", {{"all": {{}}, "no text": {{"model.leave_out": "('text',)"}}}},
              {{"loss": "head:validation/loss"}}, "all", (0,),
              {{**{SMALL!r}, "stages": "sft", "sft.epochs": 0.0, "head.epochs": 2.0, "head.batch": 16}})
"""
    (tmp_path / "plan.py").write_text(plan, encoding="utf-8")
    line = [sys.executable, "-m", "crs_jax.sweep", f"--sweep={tmp_path / 'plan.py'}", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = read_json(tmp_path / "out" / "plan.json")["cells"]
    assert cells["all"]["0"]["loss"] != cells["no text"]["0"]["loss"]
    assert json.dumps(cells)
    assert "| no text |" in (tmp_path / "out" / "plan.md").read_text(encoding="utf-8")
    assert "minus all" in (tmp_path / "out" / "plan.html").read_text(encoding="utf-8")


PASSES_ON = """
import signal, sys
from crs_jax.tools.sweep import program as sweep
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from crs_jax.runtime.errors import InputError
def one(seed, cell):
    if sweep.execute([sys.executable, "-c", sys.argv[1]], stdout=None, stderr=None).returncode and seed:
        raise InputError("the run ended")
plan = sweep.Sweep("configs/quickstart.py", {"all": {}, "more": {}}, {}, "all", seeds=(0, 1, 2))
sweep.load = lambda path: plan
sweep.run = lambda plan, out, more, jobs: sweep.side_by_side(plan, one, jobs)
sys.exit(sweep.main(["--sweep=x", "--out=y", "--jobs=2"]))
"""


@pytest.mark.parametrize(
    ("number", "status", "heard"),
    [(signal.SIGINT, 130, signal.SIGINT), (signal.SIGTERM, 143, signal.SIGTERM), (signal.SIGHUP, 129, signal.SIGTERM)],
)
def test_a_signal_is_the_runs_which_save_and_end(number, status, heard):
    """Two runs at a time; of the terminal's Ctrl-C, which goes to the whole group, they hear once."""
    process = start(PASSES_ON, process_group=0, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    os.killpg(process.pid, number)
    out, said = process.communicate(timeout=HANGS)
    assert process.returncode == status, said
    assert "begun" not in out
    assert said == f"saved {heard:d}\n" * 2 + f"sweep: ended by {number.name}: the same command continues\n"
