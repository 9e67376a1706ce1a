"""Two processes of one run on this machine, the death of one, and what of their logs must be as one process has."""

import signal
import socket
import time

import pytest
from small_run import logged, start
from waits import HANGS

LONGEST = 150  # seconds until the others of a dead process have ended


def pair(workdir, **settings):
    """Both processes of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = ("--distributed", f"--coordinator=localhost:{port}", "--processes=2")
    return [start(workdir, *flags, f"--process={number}", **settings) for number in range(2)]


def ended(processes) -> list[str]:
    """What they said until they ended well."""
    try:
        said = [process.communicate(timeout=HANGS)[0] for process in processes]
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
