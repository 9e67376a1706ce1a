"""Several processes that are one run: how they find each other and their folder, and what is said where one is gone."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from crs_jax.runtime.errors import InputError, LostProcessError

_GONE = re.compile(r"gloo|connection (reset|closed|refused)|broken pipe|coordination|heartbeat|UNAVAILABLE", re.I)
PATIENCE = 10.0  # seconds within which a folder over a network shows what another machine has written


def join(arguments: dict[str, Any]) -> None:
    """`jax.distributed.initialize`: what `arguments` leave out is what SLURM, a TPU slice or GKE says of itself.

    Raises:
      InputError: nothing here says it, or what is said cannot be.
      LostProcessError: the machine of process 0 has no address yet, or no more.
    """
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, TypeError) as error:
        flags = "--coordinator=HOST:PORT --processes=N --process=I"
        raise InputError(
            f"--distributed: {' '.join(str(error).split()).rstrip('.')}; on a TPU slice, on GKE's TPUs and under srun "
            f"it is found, elsewhere give every process {flags}"
        ) from None
    except RuntimeError as error:
        if "coordinator address" not in str(error):
            raise
        raise LostProcessError(f"--distributed: {error}: give the same command to all processes again") from error


def refuse_unless_shared(workdir: pathlib.Path) -> None:
    """Raises `InputError`, in all processes alike, where they do not see one folder under this name.

    Each would keep its part of a checkpoint to itself, and none would ever be whole.
    """
    if jax.process_count() == 1:
        return
    first, mark = jax.process_index() == 0, np.frombuffer(os.urandom(4), np.uint32)
    if first:
        (workdir / f".shared-{mark[0]:08x}").touch()
    file = workdir / f".shared-{int(broadcast_one_to_all(mark)[0]):08x}"
    until = time.monotonic() + PATIENCE
    while not (seen := file.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    apart = np.flatnonzero(~np.asarray(process_allgather(np.array([seen]))).reshape(-1))
    if first:
        file.unlink(missing_ok=True)
    if apart.size:
        raise InputError(
            f"--workdir={workdir}: not one folder for all processes: {', '.join(map(str, apart))} of "
            f"{jax.process_count()} do not see there what process 0 writes; name one on a disk that all of them mount"
        )


def lost(error: BaseException) -> bool:
    """Whether an error of XLA's or of jax.distributed's says that another process does not answer."""
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and _GONE.search(str(error)) is not None


@contextlib.contextmanager
def process_guard() -> Iterator[None]:
    """Turns what the others of a dead process meet into one `LostProcessError`.

    A process that waits in Python for another is ended by jax.distributed itself, which misses its heartbeat after 100
    seconds.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise LostProcessError(
            f"another process of this run is gone ({reason}); what was saved before is whole: give the same command to "
            "all processes again"
        ) from error
