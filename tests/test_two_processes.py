"""Two processes on one machine run the whole pipeline: the same run as one, and when one dies the other ends too."""

import signal
import socket
import time

import pytest
from small_run import logged, outcome, run, start

pytestmark = pytest.mark.slow
SETTINGS = {"log_every": 1, "ppo.iterations": 4}
LONGEST = 150  # seconds until the others of a dead process have ended


def pair(workdir):
    """Both processes of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = ("--distributed", f"--coordinator=localhost:{port}", "--processes=2")
    return [start(workdir, *flags, f"--process={number}", **SETTINGS) for number in range(2)]


def test_two_processes_are_one_run(tmp_path):
    both = pair(tmp_path / "two")
    try:
        said = [process.communicate(timeout=900)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    assert "done in" in said[0]
    assert "PPO" not in said[1]  # only the first speaks
    alone = run(tmp_path / "one", **SETTINGS)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    found, expected = (outcome(tmp_path / name) for name in ("two", "one"))
    assert [(line["stage"], line["step"], line.keys()) for line in found["log"]] == [
        (line["stage"], line["step"], line.keys()) for line in expected["log"]
    ]
    for got, wanted in zip(found["log"], expected["log"], strict=True):
        if got["stage"] in ("head", "sft", "reward"):  # sums in another order, for some dozens of steps
            for name, value in wanted.items():
                if isinstance(value, float):
                    assert got[name] == pytest.approx(value, rel=0.02, abs=0.02), (got["stage"], got["step"], name)
    for row in ("popularity", "copy", "similarity", "cooccurrence", "mix"):
        assert found["metrics"]["ranking"][row] == expected["metrics"]["ranking"][row]
    assert found["metrics"].keys() == expected["metrics"].keys()


def test_the_death_of_one_ends_the_other_and_the_run_goes_on(tmp_path):
    both = pair(tmp_path)
    try:
        while both[0].poll() is None and not any(line["stage"] == "ppo" for line in logged(tmp_path)):
            time.sleep(0.1)
        assert both[0].poll() is None, both[0].communicate()[0]
        both[1].kill()
        died = time.monotonic()
        said = both[0].communicate(timeout=LONGEST)[0]
        assert time.monotonic() - died < LONGEST
        assert both[0].returncode not in (0, -signal.SIGKILL)
        last = [line for line in said.splitlines() if line.strip()][-1]
        assert last.startswith("error: "), said[-3000:]
        assert "another process" in last
        again = pair(tmp_path)
        try:
            said = [process.communicate(timeout=900)[0] for process in again]
            assert [process.returncode for process in again] == [0, 0], said
        finally:
            for process in again:
                process.kill()
        assert "sft: done before" in said[0]
    finally:
        for process in both:
            process.kill()
