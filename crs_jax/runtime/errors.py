"""What ends a run on purpose: input that the user can put right, and a signal that asks for it."""

from __future__ import annotations

import signal


class InputError(ValueError):
    """A file, flag or config value that cannot be used.

    The message is one line that names the file, line, field or flag, says what was found and what to do. `main` prints
    it without a traceback and exits with status 2.
    """


class StorageError(OSError):
    """A file that could not be read or written for want of room, rights or a disk (`runtime/storage.py`).

    `main` prints `filename: strerror` and exits with `status`, sysexits' EX_IOERR.
    """

    status = 74


class TrainingHaltedError(RuntimeError):
    """Training met a NaN or an infinity; the message says where, and what was kept (`training/halt.py`)."""

    status = 1


class LostProcessError(RuntimeError):
    """Another process of the run does not answer (`runtime/processes.py`); `status` is sysexits' EX_TEMPFAIL."""

    status = 75


class InterruptedRunError(BaseException):
    """A run that a signal asked to end has saved what it could (`runtime/interruption.py`).

    No `Exception`, so that nothing takes it for a failure.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"ended by {self.signal.name}")

    @property
    def status(self) -> int:
        """Exit status: 128 + the signal's number."""
        return 128 + self.signal
