"""Two processes on one machine are one run: the same as that of one process, and when one dies the other ends too."""

import signal
import socket
import time

import pytest
from small_run import logged, outcome, run, start

SETTINGS = {"log_every": 1, "ppo.iterations": 4}
SFT_ALONE = {"log_every": 1, "stages": "sft", "sft.epochs": 2, "save_minutes": 0.01}
LONGEST = 150  # seconds until the others of a dead process have ended


def pair(workdir, settings=SETTINGS):
    """Both processes of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = ("--distributed", f"--coordinator=localhost:{port}", "--processes=2")
    return [start(workdir, *flags, f"--process={number}", **settings) for number in range(2)]


def ended(processes) -> list[str]:
    """What they said until they ended well."""
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def left_alone(processes, workdir, stage: str) -> None:
    """The second is killed in the stage: the first ends in bounded time, says why, and what to do."""
    first, second = processes
    try:
        while first.poll() is None and not any(line["stage"] == stage for line in logged(workdir)):
            time.sleep(0.05)
        assert first.poll() is None, first.communicate()[0]
        second.kill()
        died = time.monotonic()
        said = first.communicate(timeout=LONGEST)[0]
        assert time.monotonic() - died < LONGEST
        assert first.returncode not in (0, -signal.SIGKILL)
        last = [line for line in said.splitlines() if line.strip()][-1]
        assert last.startswith("error: "), said[-3000:]
        assert "another process" in last
    finally:
        first.kill()


def assert_close(found: list[dict], expected: list[dict]) -> None:
    """The same lines; sums were taken in another order, for some dozens of steps."""
    assert [(line["stage"], line["step"], line.keys()) for line in found] == [
        (line["stage"], line["step"], line.keys()) for line in expected
    ]
    for got, wanted in zip(found, expected, strict=True):
        if got["stage"] in ("head", "sft", "reward"):
            for name, value in wanted.items():
                if isinstance(value, float):
                    assert got[name] == pytest.approx(value, rel=0.02, abs=0.02), (got["stage"], got["step"], name)


def test_one_dies_and_both_go_on_as_one_process_would(tmp_path):
    """The small form of the two below: supervised learning alone."""
    left_alone(pair(tmp_path / "two", SFT_ALONE), tmp_path / "two", "sft")
    said = ended(pair(tmp_path / "two", SFT_ALONE))
    assert "done in" in said[0]
    assert "supervised" not in said[1]  # only the first speaks
    alone = run(tmp_path / "one", **SFT_ALONE)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert_close(logged(tmp_path / "two"), logged(tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    said = ended(pair(tmp_path / "two"))
    assert "done in" in said[0]
    assert "PPO" not in said[1]  # only the first speaks
    alone = run(tmp_path / "one", **SETTINGS)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    found, expected = (outcome(tmp_path / name) for name in ("two", "one"))
    assert_close(found["log"], expected["log"])
    for row in ("popularity", "copy", "similarity", "cooccurrence", "mix"):
        assert found["metrics"]["ranking"][row] == expected["metrics"]["ranking"][row]
    assert found["metrics"].keys() == expected["metrics"].keys()


@pytest.mark.slow
def test_the_death_of_one_ends_the_other_and_the_run_goes_on(tmp_path):
    left_alone(pair(tmp_path), tmp_path, "ppo")
    assert "sft: done before" in ended(pair(tmp_path))[0]
