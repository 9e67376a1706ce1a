"""What a cache keeps, so that it is made once: whole, or as if it were not there.

Sums are checked before any library parses what is kept. What is damaged is made again, and said so in one line; it is
replaced, never removed, for another run may be using it. Nobody but a killed writer leaves files beside their places,
and those go when they are a day old.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json, write_json
from crs_jax.runtime.progress import say
from crs_jax.runtime.storage import sha256

SUMS = "sums.json"
DAY = 86_400.0  # seconds: what is younger may have a writer
_LEFT_OVER = re.compile(r"\.(raw|([a-z]+-)?[0-9a-f]{16,24})-\w{8}(\.tmp)?|tmp\w{8}\.tmp")


def keep_arrays(folder: pathlib.Path, name: str, **arrays: Any) -> None:
    """Writes `NAME-SUM.npz`, the sum over its bytes; a damaged one of that name goes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **arrays)
    data = content.getvalue()
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, folder / f"{name}-{_sum(data)}.npz")
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    for path in folder.glob(f"{name}-*.npz"):
        if _whole(path) is None:
            path.unlink(missing_ok=True)


def kept_arrays(folder: pathlib.Path, name: str = "*") -> Iterator[dict[str, np.ndarray]]:
    """What `keep_arrays` wrote under that name, or under all; damaged ones are left out, a line for each."""
    for path in sorted(folder.glob(f"{name}-*.npz")):
        try:
            if (data := _whole(path)) is None:
                raise ValueError("another sum")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = dict(arrays)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            say(f"note: {path} is damaged; what it held is made again")
            continue
        yield found


def _whole(path: pathlib.Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if _sum(data) == path.stem.rpartition("-")[2] else None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def is_whole(folder: pathlib.Path) -> bool:
    """Whether a folder is there and has the files, byte for byte, that it had when it was kept."""
    with contextlib.suppress(InputError, OSError):
        return read_json(folder / SUMS) == _sums(folder)
    return False


def _sums(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


@contextlib.contextmanager
def making(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder to write into, which then stands at the place of `folder`, where no whole one does by then.

    A reader sees all or nothing; of two writers the first wins. A damaged one is moved aside, for a day.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(folder)
    try:
        yield new
        write_json(new / SUMS, _sums(new))
        new.chmod(0o755)
        if folder.is_dir() and not is_whole(folder):
            aside = _beside(folder)
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                os.rename(folder, aside)
            os.utime(aside)
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))


def clean(cache: pathlib.Path) -> None:
    """Removes what killed writers left in a cache, where nothing in it has changed for a day."""
    for path in (*cache.glob(".*"), *cache.glob("embeddings/*/*")):
        if _LEFT_OVER.fullmatch(path.name) is None or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if newest > time.time() - DAY:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
