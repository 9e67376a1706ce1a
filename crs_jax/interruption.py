"""Signals that ask a run to end: it saves what it has done and leaves; asked again, it leaves at once.

SIGTERM is what a scheduler or a pre-empted machine sends some seconds before the end, SIGINT is Ctrl-C. A loop that can
save at every step (`saving`) looks whether it was asked to end (`asked`); anywhere else the run ends where it stands,
since what it does there is done again. The exit status is 128 + the signal's number: 143, 130.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from crs_jax.errors import InterruptedRunError
from crs_jax.progress import Progress

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_asked: signal.Signals | None = None
_loops = 0


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Has the signals heard, from the main thread of a process of its own; after jax.distributed, which takes SIGTERM.

    The first is heard between two instructions of Python, so a step or a compilation under way comes to its end before;
    the second needs no Python, but a thread that waits for it.
    """
    global _asked
    _asked = None
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    handlers = {number: signal.signal(number, _hear) for number in SIGNALS}
    Progress.watcher, told = _leave_unless_saving, sys.unraisablehook
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, InterruptedRunError) else told(lost)
    try:
        yield
    finally:
        Progress.watcher, sys.unraisablehook = None, told
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(write)


def _watch(read: int) -> None:
    """Says that the first signal was heard, and ends the process at the second."""
    heard = 0
    with open(read, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] not in SIGNALS:
                continue
            heard += 1
            if heard == 1:
                name = signal.Signals(number[0]).name
                print(f"\n{name}: ends after this step and saves it; once more to end at once", file=sys.stderr)
            else:
                os._exit(128 + number[0])


def _hear(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = signal.Signals(number)
    _leave_unless_saving()


def _leave_unless_saving() -> None:
    """Ends the run where it stands. What is raised in a signal's handler is lost where a library's callback was under
    way, so this is looked at again as work goes on.
    """
    if _asked is not None and not _loops:
        raise InterruptedRunError(_asked)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """A loop that looks at `asked` after every step. Where it ends by itself first, the run ends behind it."""
    global _loops
    _leave_unless_saving()
    _loops += 1
    try:
        yield
        leave_if_asked()
    finally:
        _loops -= 1


def leave_if_asked() -> None:
    """Raises `InterruptedRunError` where this process was asked to end."""
    if _asked is not None:
        raise InterruptedRunError(_asked)


class Pace:
    """When a loop saves between its own times: every few minutes, and when the run is asked to end.

    Args:
      minutes: between two saves.
      every: with several processes, steps between two looks, which all take together: each waits for the device.
    """

    def __init__(self, minutes: float, every: int = 1) -> None:
        self._seconds, self._every = 60 * minutes, every
        self._saved = time.monotonic()

    def saved(self) -> None:
        """The loop has saved."""
        self._saved = time.monotonic()

    def __call__(self, step: int) -> tuple[bool, bool]:
        """After `step`: whether to save, and whether to end then; the same in all processes."""
        number = int(_asked or 0)
        due = time.monotonic() - self._saved > self._seconds
        if jax.process_count() > 1:
            if step % self._every:
                return False, False
            told = np.asarray(process_allgather(np.array([number, int(due)], np.int32))).reshape(-1, 2)
            number, due = int(told[:, 0].max()), bool(told[0, 1])
            if number and _asked is None:
                _hear(number, None)
        return bool(number) or due, bool(number)
