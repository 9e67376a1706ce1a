"""Commands that a program runs beside each other, and signals that are theirs too."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from crs_jax.errors import InputError, InterruptedRunError
from crs_jax.progress import say

_running: set[subprocess.Popen] = set()
_asked: list[int] = []


def execute(line: Sequence[str], stdout: Any, stderr: Any) -> subprocess.Popen:
    """Runs a command to its end, in a group of its own: a signal of the terminal's comes from `passing_on` alone.

    Raises `InterruptedRunError` where the program was asked to end before.
    """
    if _asked:
        raise InterruptedRunError(_asked[0])
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0)
    _running.add(process)
    try:
        process.wait()
    finally:
        _running.discard(process)
    return process


@contextlib.contextmanager
def passing_on() -> Iterator[None]:
    """Signals that ask the program to end are the commands', each time; what these do then ends it."""

    def hear(number: int, frame: FrameType | None) -> None:
        _asked.append(number)
        if not _running:
            raise InterruptedRunError(number)
        say(f"{signal.Signals(number).name} is passed on to the runs, which save and end; once more to end at once")
        for process in tuple(_running):
            process.send_signal(number)

    _asked.clear()
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield
    except InputError:
        if not _asked:
            raise
        raise InterruptedRunError(_asked[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
