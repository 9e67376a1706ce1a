"""Kills and signals to a real process, and disks that fail it: it saves and says so, and the same command goes on.

What is not marked slow is the small form of the others and of tests/soak/test_kills.py.
"""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest
from small_run import (
    FINISHED,
    ROOT,
    SIGNAL_STATUS,
    assert_same,
    command,
    environment,
    logged,
    outcome,
    run,
    saving,
    start,
)
from waits import HANGS

from crs_jax.runtime import interruption
from crs_jax.runtime.errors import StorageError

OFTEN = {**FINISHED, "save_minutes": 0.01}


def when(process, workdir, stage: str, step: int) -> None:
    """Waits until that step is logged."""
    while process.poll() is None:
        if any(line["stage"] == stage and line["step"] >= step for line in logged(workdir)):
            return
        time.sleep(0.005)
    pytest.fail(process.communicate()[0])


@pytest.fixture(scope="module")
def expected(finished_run):
    return outcome(finished_run)


def caught_saving(process, workdir, stage: str) -> None:
    """Waits until a checkpoint of the stage is being written."""
    while process.poll() is None:
        if saving(workdir, stage):
            return
        time.sleep(0.001)
    pytest.fail(process.communicate()[0])


def last_saved(workdir, stage: str) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints" / stage).iterdir() if path.name.isdigit())


def small_disks() -> bool:
    """Whether this user may mount a disk of a few kilobytes."""
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(mount, capture_output=True).returncode == 0


ON_A_FULL_DISK = """
mount -t tmpfs -o size=400m tmpfs {disk}
cp -a {workdir}/. {disk}
mount -o remount,size=$(($(df -k --output=used {disk} | tail -1) + 48))k {disk}
{run} > {log} 2>&1
echo $? > {log}.status
rm -r {workdir} && cp -a {disk} {workdir}
"""


def test_kills_signals_and_a_full_disk_change_nothing(expected, tmp_path):
    """Five kills, two of them in a save, two signals and a full disk, over all stages: it ends as one left alone."""
    workdir = tmp_path / "run"
    for stage, step, number in (
        ("sft", 2, signal.SIGKILL), ("sft", None, signal.SIGKILL), ("sft", 6, signal.SIGTERM),
        ("reward", 1, signal.SIGKILL), ("ppo", 1, signal.SIGINT), ("ppo", None, signal.SIGKILL),
        ("ppo", 4, signal.SIGKILL),
    ):  # fmt: skip
        process = start(workdir, **OFTEN)
        if step is None:
            caught_saving(process, workdir, stage)
        else:
            when(process, workdir, stage, step)
        process.send_signal(number)
        said, _ = process.communicate(timeout=HANGS)
        assert process.returncode == SIGNAL_STATUS.get(number, -number), said
        assert "Traceback" not in said
        if number != signal.SIGKILL:
            assert last_saved(workdir, stage) == max(line["step"] for line in logged(workdir) if line["stage"] == stage)
    if small_disks():
        disk, log = tmp_path / "disk", tmp_path / "log"
        disk.mkdir()
        line = shlex.join(command(disk, **OFTEN))
        script = ON_A_FULL_DISK.format(workdir=workdir, disk=disk, run=line, log=log)
        subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, env=environment(), timeout=HANGS, check=True)
        assert int((tmp_path / "log.status").read_text()) == StorageError.status, log.read_text()
        assert "No space left on device; what was saved before in" in log.read_text().splitlines()[-1]
    elif os.environ.get("CI"):
        pytest.fail("no right to mount a small disk here")
    done = run(workdir, **OFTEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(outcome(workdir), expected)


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_saves_and_goes_on(expected, tmp_path):
    """In the middle of an epoch of SFT by SIGTERM, in PPO by SIGINT: nothing that was logged is done again."""
    for stage, step, number in (("sft", 3, signal.SIGTERM), ("reward", 2, signal.SIGTERM), ("ppo", 2, signal.SIGINT)):
        process = start(tmp_path, **FINISHED)
        when(process, tmp_path, stage, step)
        process.send_signal(number)
        said, _ = process.communicate(timeout=HANGS)
        assert process.returncode == SIGNAL_STATUS[number], said
        assert f"{number.name}: ends after this step and saves it" in said
        assert f"ended by {number.name}: what was done is saved in {tmp_path}; the same command continues" in said
        assert "Traceback" not in said
        last = max(line["step"] for line in logged(tmp_path) if line["stage"] == stage)
        assert last_saved(tmp_path, stage) == last
    done = run(tmp_path, **FINISHED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(outcome(tmp_path), expected)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(expected, tmp_path):
    process = start(tmp_path, **FINISHED)
    when(process, tmp_path, "sft", 1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    process.communicate(timeout=HANGS)
    assert time.monotonic() - asked < 2
    assert process.returncode in SIGNAL_STATUS.values()


@pytest.mark.slow
def test_before_the_first_step_it_ends_where_it_stands(tmp_path):
    process = start(tmp_path)
    while process.poll() is None and not (tmp_path / "tokenizer").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=HANGS)
    assert process.returncode == SIGNAL_STATUS[signal.SIGTERM], said
    assert "Traceback" not in said


SCRIPT = """
mount -t tmpfs -o size=1200k tmpfs {disk}
{run} > {logs}/full 2>&1; echo $? > {logs}/full.status
mount -o remount,size=400m {disk}
{run} > {logs}/room 2>&1; echo $? > {logs}/room.status
mount -o remount,ro {disk}
{run} > {logs}/closed 2>&1; echo $? > {logs}/closed.status
cp -r {disk}/run {logs}/kept
"""


@pytest.mark.slow
def test_a_full_disk_and_a_closed_one_lose_nothing(expected, tmp_path):
    """A disk of 1.2 MB is full in the middle; with room the same command goes on, and ends as if nothing had been."""
    if not small_disks():
        pytest.skip("no right to mount a small disk here")
    disk = tmp_path / "disk"
    disk.mkdir()
    line = shlex.join(command(disk / "run", **FINISHED))
    script = SCRIPT.format(disk=disk, logs=tmp_path, run=line)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, env=environment(), timeout=HANGS)
    assert done.returncode == 0
    said = {name: (tmp_path / name).read_text() for name in ("full", "room", "closed")}
    status = {name: int((tmp_path / f"{name}.status").read_text()) for name in said}
    assert status == {"full": 74, "room": 0, "closed": 74}, said
    for name, reason in (("full", "No space left on device"), ("closed", "Read-only file system")):
        errors = [line for line in said[name].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said[name]
        assert f": {reason}; what was saved before in {disk / 'run'} is whole: make" in errors[0]
        assert said[name].rstrip().endswith(errors[0])  # after what orbax' threads say of it
    assert_same(outcome(tmp_path / "kept"), expected)


COMPILES = """
import os, pathlib, sys, time
import jax, jax.numpy as jnp
from crs_jax import pipeline
from crs_jax.runtime import interruption
from crs_jax.runtime.interruption import saving
from crs_jax.main import main
from crs_jax.runtime.program import leave, run_program
interruption.PATIENCE = 1

def unrolled(x):
    for n in range(700):
        x = jnp.tanh(jnp.sort(x * 1.01 + n) @ x.T)
    return x

def compiles(*_):
    lowered = jax.jit(unrolled).lower(jnp.ones((16, 16)))
    print("compiling", flush=True)
    lowered.compile()
    print("compiled", flush=True)

def loop(*_):
    with saving():
        compiles()

if sys.argv[1] == "program":
    leave(run_program(compiles))
pipeline.run = loop if sys.argv[1] == "loop" else compiles
leave(main(["main", "--config=configs/quickstart.py", "--workdir=" + sys.argv[2]]))
"""


def script(text: str, *arguments: str, **pipes) -> subprocess.Popen:
    env = {**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", text, *arguments]
    ends = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen(line, cwd=ROOT, env=env, text=True, **ends)


def test_a_compilation_is_left_within_ten_seconds(tmp_path):
    """One of half a minute: in a stage's loop, anywhere else in a run, and in another program.

    The processes wait for less than they would, and a busy machine, which compiles as slowly, may add seconds of its
    own: the three end before one of them could have compiled.
    """
    assert interruption.PATIENCE + interruption.STEADY < 10
    cases = {"loop": signal.SIGINT, "run": signal.SIGTERM, "program": signal.SIGINT}
    running = {where: script(COMPILES, where, str(tmp_path)) for where in cases}
    asked = {}
    for where, process in running.items():
        assert process.stdout.readline() == "compiling\n"
        process.send_signal(cases[where])
        asked[where] = time.monotonic()
    for where, process in running.items():
        out, said = process.communicate(timeout=HANGS)
        assert time.monotonic() - asked[where] < 30
        assert (process.returncode, out) == (SIGNAL_STATUS[cases[where]], ""), said
        assert "Traceback" not in said
        assert said.endswith("the same command continues\n") == (where != "program")
        assert (str(tmp_path) in said) == (where != "program")
        if where == "loop":
            assert "SIGINT: ended in the middle of a compilation, which cannot be interrupted; what was saved" in said


LONG_STEP = """
import pathlib, sys, time
import jax, jax.numpy as jnp
from crs_jax.runtime import interruption
interruption.PATIENCE = 0.5
step = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x) + 1, jnp.ones(1000)))
step(1).block_until_ready()
started = time.monotonic()
step(2000).block_until_ready()
rounds = int(2000 * 3 / (time.monotonic() - started))
with interruption.listening(), interruption.saving():
    print("stepping", flush=True)
    started = time.monotonic()
    step(rounds).block_until_ready()
    print("stepped", time.monotonic() - started > 1.5, flush=True)
    time.sleep(0.4)
    print("saved", flush=True)
print("went on")
"""


def test_a_long_step_is_waited_for_and_saved():
    """Three seconds of arithmetic in a stage's loop, with half a second of patience."""
    process = script(LONG_STEP)
    assert process.stdout.readline() == "stepping\n"
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=HANGS)
    assert out == "stepped True\nsaved\n"
    assert "cannot be interrupted" not in said
    assert "InterruptedRunError" in said


BUSY = """
import pathlib, time
from crs_jax.runtime import interruption
interruption.PATIENCE = 0.5
with interruption.listening(pathlib.Path("w")):
    try:
        print("busy", flush=True)
        time.sleep(30)
    except BaseException:
        time.sleep(30)  # as an executor that waits for its downloads
"""


def test_a_library_that_does_not_let_go_is_left():
    process = script(BUSY)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, said = process.communicate(timeout=HANGS)
    assert time.monotonic() - asked < 10
    assert (process.returncode, out) == (130, ""), said
    assert "SIGINT: ended in the middle of a call, which cannot be interrupted; what was saved in w before" in said


@pytest.mark.parametrize("gone", ["reader", "terminal", "stderr"])
def test_the_watcher_lives_on_where_nothing_can_be_said(gone):
    """The reader of stderr is gone, its terminal is, or stderr was closed from the start."""
    if gone == "terminal":
        master, terminal = pty.openpty()
        process = script(BUSY, stderr=terminal)
        os.close(terminal)
    else:
        process = script(("import sys; sys.stderr = None\n" if gone == "stderr" else "") + BUSY)
    assert process.stdout.readline() == "busy\n"
    if gone == "terminal":
        os.close(master)
    elif gone == "reader":
        process.stderr.close()
    process.send_signal(signal.SIGTERM)
    out = process.stdout.read()
    assert (process.wait(timeout=HANGS), out) == (143, "")


ASKED = """
import contextlib, sys, time
from crs_jax.runtime import interruption
if sys.argv[2:]:
    interruption.REPEAT = float(sys.argv[2])
with interruption.listening(), interruption.saving() if sys.argv[1] == "step" else contextlib.nullcontext():
    try:
        print("begun", flush=True)
        time.sleep(1 if sys.argv[1:] == ["step"] else 30)
    finally:
        print("ending", flush=True)
        time.sleep(0.5)
        print("saved", flush=True)
"""


@pytest.mark.parametrize("where", ["step", "elsewhere"])
def test_one_request_that_arrives_twice_counts_once(where):
    """As slurm and systemd signal a process and the parent that forwards it: in a step, and in a clean-up."""
    process = script(ASKED, where)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    if where == "step":
        process.stderr.readline()
        assert process.stderr.readline().startswith("SIGTERM: ends after this step")
    else:
        assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=HANGS)
    assert out.endswith("saved\n"), said
    assert said.rstrip().endswith("InterruptedRunError: ended by SIGTERM")


def test_the_same_signal_some_time_later_ends_at_once():
    process = script(ASKED, "step", "0.2")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (143, "")
