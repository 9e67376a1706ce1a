"""Runs commands beside each other and forwards signals to them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from crs_jax.runtime.errors import InputError, InterruptedRunError
from crs_jax.runtime.interruption import AGAIN
from crs_jax.runtime.progress import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_running: set[subprocess.Popen] = set()
_asked: list[int] = []


def execute(line: Sequence[str], stdout: Any, stderr: Any) -> subprocess.Popen:
    """Runs a command to its end, in a process group of its own, so that it gets signals through `passing_on` alone.

    Called from a thread beside the main one, which is where Python handles signals. Raises `InterruptedRunError` where
    the program was asked to end before.
    """
    if _asked:
        raise InterruptedRunError(_asked[0])
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0)
    _running.add(process)
    try:
        for number in tuple(_asked):  # which came while it was started
            _forward(number, process)
        process.wait()
    finally:
        _running.discard(process)
    return process


def _forward(number: int, process: subprocess.Popen) -> None:
    """A command saves and ends at SIGTERM and SIGINT; SIGHUP would kill it."""
    process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


@contextlib.contextmanager
def passing_on() -> Iterator[None]:
    """Forwards every signal that asks the program to end to the commands; the program ends when they have.

    A signal that the program was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """

    def hear(number: int, frame: FrameType | None) -> None:
        _asked.append(number)
        if not _running:
            raise InterruptedRunError(number)
        for process in tuple(_running):
            _forward(number, process)
        with contextlib.suppress(OSError, RuntimeError):  # the terminal is gone, or was being written to
            say(f"{signal.Signals(number).name} is passed on to the runs, which save and end; {AGAIN}")

    _asked.clear()
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield
    except InputError:
        if not _asked:
            raise
        raise InterruptedRunError(_asked[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
