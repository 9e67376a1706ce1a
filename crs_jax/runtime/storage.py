"""The run's folder: one run at a time in it, and what is said where it cannot be written."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import pathlib
import re
import socket
from collections.abc import Iterator

from crs_jax.runtime.errors import InputError, StorageError
from crs_jax.runtime.progress import say

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN = (errno.EIO, errno.ESTALE)
_CODE = re.compile(r"os(?:_error_code='| error )(\d+)")
_FILE = re.compile(r'Failed writing: "([^"]+)"')


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is such a folder; a name that no file can have is none."""
    try:
        return pathlib.Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, `~` of no user, a zero byte
        return False


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return pathlib.Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def sha256(path: str | os.PathLike) -> str:
    """Of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(folder: pathlib.Path, workdir: pathlib.Path) -> bool:
    """Whether a folder in `workdir`, or anything in it, is a link to elsewhere."""
    root = workdir.resolve()
    return not all(path.resolve().is_relative_to(root) for path in (folder, *folder.rglob("*")))


def refuse_links_out(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """`InputError` where what is to be written in a folder of `workdir` would land elsewhere."""
    if leads_out(folder, workdir):
        raise InputError(f"{folder}: a link in it leads out of {workdir}, and loading writes nothing elsewhere")


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this run; `InputError` where another one is in it.

    The lock is the operating system's, so that a run that was killed leaves none behind. On a file system that has no
    locks there is none, and it is said.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX
        yield
        return
    with open(workdir / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            rule = "wait for its end, or choose another --workdir"
            raise InputError(f"--workdir={workdir}: a run is in this folder ({who}); {rule}") from None
        except OSError as error:
            say(f"note: {workdir} is on a file system without locks ({error.strerror}); keep other runs out of it")
        file.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield


def trouble(error: BaseException) -> tuple[int, str] | None:
    """Number and file of an error of the operating system's storage, also of one that orbax or safetensors reports as
    a text.
    """
    if isinstance(error, OSError) and error.errno in (*FULL, *CLOSED, *BROKEN):
        return error.errno, str(error.filename or "")
    found = _CODE.search(str(error))
    if found is None:
        return None
    file = _FILE.search(str(error))
    return int(found[1]), file[1] if file else ""


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system says of a disk into one `StorageError` that says what to do."""
    try:
        yield
    except Exception as error:
        found = trouble(error)
        if found is None or isinstance(error, StorageError):
            raise
        number, file = found
        remedy = {**dict.fromkeys(FULL, "make room"), **dict.fromkeys(CLOSED, "make it writable")}
        kept = f"what was saved before in {workdir} is whole"
        rule = f"{remedy.get(number, 'see to the disk')} and give the same command again"
        raise StorageError(number, f"{os.strerror(number)}; {kept}: {rule}", file or str(workdir)) from error
