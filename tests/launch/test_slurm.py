"""launch/slurm.sbatch: what it makes of how its processes end; and two processes that find each other under SLURM."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from launch_fakes import HOSTILE, ROOT, Fakes
from small_run import command, environment, logged, outcome, run
from two_processes import assert_close, left_alone, pair
from waits import HANGS

SCRIPT = "launch/slurm.sbatch"
LEAST = {
    "stages": "sft",
    "head.epochs": 0.0,
    "model.layers": 1,
    "simulator.train_dialogues": 24,
    "sft.row_tokens": 192,
    "sft.epochs": 4,
}


def settings(text):
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


def test_a_process_a_gpu_and_a_signal_before_the_end():
    lines = (ROOT / SCRIPT).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    head = settings("\n".join(lines[:first]))  # sbatch stops reading at the first command
    assert head == settings("\n".join(lines))
    assert head["ntasks-per-node"] == head["gpus-per-node"]  # jax takes the GPU of the process' number on its node
    assert "gpus-per-task" not in head
    name, seconds = head["signal"].split("@")
    assert name == "TERM"  # without B: it goes to the processes, not to the script, which has to live on to requeue
    assert int(seconds) >= 60
    assert "requeue" in head
    assert head["open-mode"] == "append"


@pytest.mark.parametrize(
    ("statuses", "status", "requeued"),
    [
        ("0,0", 0, False),
        ("75,killed", 137, True),
        ("143,143", 143, True),
        ("2,134", 2, False),
        ("74,75", 74, False),
        ("1,75", 1, False),
    ],
)
def test_how_the_processes_end_decides(tmp_path, statuses, status, requeued):
    fakes = Fakes(tmp_path, squeue=["RUNNING"])
    done = fakes.run(SCRIPT, "--config=x", "--workdir=two words", **fakes.slurm(ENDS_WITH=statuses))
    assert done.returncode == status, done.stderr
    assert [call["args"] for call in fakes.calls("scontrol")] == [["requeue", "4242"]] * requeued
    calls = fakes.calls("python")
    assert [call["args"] for call in calls] == [
        ["-m", "crs_jax.main", "--distributed", "--config=x", "--workdir=two words"]
    ] * 2
    assert sorted(call["process"] for call in calls) == [0, 1]


@pytest.mark.parametrize("by", [["sbatch", SCRIPT], [SCRIPT]])
def test_what_is_given_arrives_as_it_is(tmp_path, by):
    fakes = Fakes(tmp_path, squeue=["RUNNING"])
    done = fakes.run(*by, *HOSTILE, **fakes.slurm())
    assert done.returncode == 0, done.stderr
    expected = ["-m", "crs_jax.main", "--distributed", *HOSTILE]
    assert [call["args"] for call in fakes.calls("python")] == [expected] * 2
    assert not [*tmp_path.rglob("pwned"), *ROOT.glob("pwned")]


def test_the_end_of_its_time_saves_and_queues_again(tmp_path):
    """The signal goes to all processes of the tasks, the waiting shells among them."""
    fakes = Fakes(tmp_path, squeue=["RUNNING"])
    job = subprocess.Popen(
        ["bash", SCRIPT, "--config=x"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**fakes.environment, **fakes.slurm(ENDS_WITH="wait")},
    )  # fmt: skip
    until = time.monotonic() + HANGS
    while len(list(tmp_path.glob("waiting-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    said = job.communicate(timeout=HANGS)[0]
    assert job.returncode == 143
    assert said.splitlines().count("saved") == 2
    assert fakes.calls("scontrol")


@pytest.mark.parametrize(
    ("state", "more", "said"),
    [
        ("COMPLETING", {}, ""),  # after scancel
        ("RUNNING", {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, "after 3 restarts"),
    ],
)
def test_not_queued_again(tmp_path, state, more, said):
    fakes = Fakes(tmp_path, squeue=[state])
    done = fakes.run(SCRIPT, "--config=x", **fakes.slurm(ENDS_WITH="143", **more))
    assert done.returncode == 143
    assert said in done.stderr
    assert not fakes.calls("scontrol")


def test_from_another_folder_or_without_an_installation_it_says_what_to_do(tmp_path):
    fakes = Fakes(tmp_path)
    wrong = ({"SLURM_SUBMIT_DIR": str(tmp_path)}, "run sbatch there"), ({"VENV": "/nowhere"}, "EXTRAS=cuda")
    for more, said in wrong:
        done = fakes.run(SCRIPT, "--config=x", **{**fakes.slurm(), **more})
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def job_number():
    """A job whose coordinator's port, which jax makes of the number, is free."""
    for number in range(4096):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", 65536 - 4096 + number))
            except OSError:
                continue
            return number + 4096
    raise AssertionError("no free port")


def submit(fakes, workdir, **changes):
    """The quickstart by launch/slurm.sbatch, on two local processes of the real program."""
    flags = [flag for flag in command(workdir, **changes) if flag.startswith("--")]
    python = {"VENV": sys.prefix, "PYTHONPATH": environment()["PYTHONPATH"]}
    return fakes.run(SCRIPT, *flags, **fakes.slurm(SLURM_JOB_ID=str(job_number())), **python)


def test_one_of_two_dies_and_two_that_find_each_other_go_on_as_one_process_would(tmp_path):
    """The small form of tests/test_two_processes.py, supervised learning alone; begun without SLURM, ended under it."""
    workdir, often = tmp_path / "two", {**LEAST, "log_every": 1, "save_minutes": 0.01}
    left_alone(pair(workdir, **often), workdir, "sft")
    done = submit(Fakes(tmp_path / "fakes"), workdir, **often)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 x cpu" in done.stdout
    assert done.stdout.count("done in") == 1  # one run, not two, and the first alone speaks
    assert not list(workdir.glob(".shared-*"))
    alone = run(tmp_path / "one", **often)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert_close(logged(workdir), logged(tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_run_the_quickstart(tmp_path):
    fakes = Fakes(tmp_path / "fakes")
    done = submit(fakes, tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"sft", "ppo"} <= outcome(tmp_path / "run")["metrics"]["ranking"].keys()


def test_folders_that_are_not_one_end_the_run(tmp_path):
    """Each machine has a folder of this name on its own disk: both say so, and neither trains."""
    slurm = {"SLURM_JOB_ID": str(job_number()), "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    both = [
        subprocess.Popen(
            command(tmp_path / str(number), "--distributed", **LEAST), cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**environment(), **slurm, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=HANGS)[1].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    for number, line in enumerate(said):
        assert line.startswith(f"error: --workdir={tmp_path / str(number)}: not one folder for all processes: 1 of 2")
    assert not list(tmp_path.glob("*/.shared-*"))
