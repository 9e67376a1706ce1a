"""Signals that ask a run to end: it saves what it has done and leaves; asked again, it leaves at once.

One request may arrive twice: a scheduler signals a whole group of processes, and a parent among them forwards the
signal. The same signal therefore counts as a second request only `REPEAT` seconds after the first.

SIGTERM is what a scheduler or a pre-empted machine sends some seconds before the end, SIGINT is Ctrl-C. A loop that can
save at every step (`saving`) looks whether it was asked to end (`asked`); anywhere else the run ends where it stands,
since what it does there is done again. The exit status is 128 + the signal's number: 143, 130.

Python hears a signal between two of its instructions, so not while XLA compiles or another library works for minutes.
A separate thread therefore ends the process `PATIENCE` seconds after the signal, unless a step that will be saved, or
a save, is under way. It leaves as `kill -9` would: what was saved before is whole.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from crs_jax.runtime.errors import InterruptedRunError
from crs_jax.runtime.progress import Progress

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT = 2.0  # seconds within which the same signal is the same request
AGAIN = f"again after {REPEAT:.0f} seconds to end at once"
PATIENCE = 7.0  # seconds after a signal, and after the last save
STEADY = 1.0  # seconds for which one compilation is seen, so that no short one on the way to a save is cut
_COMPILING = ("jax._src.compiler", "jax._src.interpreters.mlir", "jax._src.interpreters.partial_eval")
_SAVING = ("crs_jax.runtime.checkpoint", "orbax.", "wandb.")
_asked: signal.Signals | None = None
_loops = 0


@contextlib.contextmanager
def listening(workdir: pathlib.Path | None = None) -> Iterator[None]:
    """Has the signals heard, from the main thread of a process of its own; after jax.distributed, which takes SIGTERM.

    The first is handled between two instructions of Python, so a step under way ends first; the second by a separate
    thread.
    """
    global _asked
    _asked = None
    told = sys.unraisablehook
    with watched(f"ends after this step and saves it; {AGAIN}", workdir):
        handlers = {number: signal.signal(number, _hear) for number in SIGNALS}
        Progress.watcher = _leave_unless_saving
        sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, InterruptedRunError) else told(lost)
        try:
            yield
        finally:
            Progress.watcher, sys.unraisablehook = None, told
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def watched(answer: str = "", workdir: pathlib.Path | None = None) -> Iterator[None]:
    """Has a thread end the process where the main one cannot: `PATIENCE` seconds after a signal, at once at a second.

    Args:
      answer: what is said at the first signal, if anything.
      workdir: of the run, for what is said at the end.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read, answer, workdir), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _watch(read: int, answer: str, workdir: pathlib.Path | None) -> None:
    """Waits for signals; from the first on it looks ten times a second what the main thread does."""
    first, asked, saved, compiling, since = 0, 0.0, 0.0, None, 0.0
    with open(read, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], 0.1 if first else None)
            now = time.monotonic()
            if ready:
                if not (number := pipe.read(1)):
                    return
                if number[0] not in SIGNALS:
                    continue
                if first and (number[0] != first or now > asked + REPEAT):
                    _end(number[0])
                if not first:
                    first, asked = number[0], now
                    if answer:
                        _write(sys.stderr, f"\n{signal.Signals(first).name}: {answer}\n")
            found, saves = _main_thread()
            if found is not compiling:
                compiling, since = found, now
            steady = compiling is not None and now > since + STEADY and not saves
            if saves or (_loops and not steady):
                saved = now
            if now > asked + PATIENCE and (steady or now > saved + PATIENCE):
                what = "a compilation" if steady else "a call"
                kept = f"; what was saved in {workdir} before is whole, the same command continues" if workdir else ""
                _end(first, f"ended in the middle of {what}, which cannot be interrupted{kept}")


def _main_thread() -> tuple[FrameType | None, bool]:
    """The outermost frame of a compilation that the main thread is in, if any, and whether it is saving."""
    frame, compiling, saves = sys._current_frames().get(threading.main_thread().ident or 0), None, False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        compiling = frame if module in _COMPILING else compiling
        saves = saves or module.startswith(_SAVING)
        frame = frame.f_back
    return compiling, saves


def _end(number: int, said: str = "") -> None:
    """Ends the process, with the terminal as it was."""
    if said:
        _write(sys.stderr, f"\n{signal.Signals(number).name}: {said}\n")
    _write(sys.stdout, "\x1b[?25h", terminal=True)  # the cursor, which a progress bar hides
    os._exit(128 + number)


def _write(stream: TextIO | None, text: str, terminal: bool = False) -> None:
    """Writes without the stream's lock; nothing where it is closed, its reader is gone, or it is not the `terminal`."""
    with contextlib.suppress(OSError, ValueError):
        if stream is not None and (stream.isatty() or not terminal):
            os.write(stream.fileno(), text.encode())


def _hear(number: int, frame: FrameType | None) -> None:
    """Raises at the first signal alone: another one would cut short what cleans up after it."""
    global _asked
    again, _asked = _asked is not None, signal.Signals(number)
    if not again:
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
        import jax
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

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
