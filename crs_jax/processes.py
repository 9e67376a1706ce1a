"""Several processes that are one run: what is said where one of them is gone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from crs_jax.errors import LostProcessError

_GONE = re.compile(r"gloo|connection (reset|closed|refused)|broken pipe|coordination|heartbeat|UNAVAILABLE", re.I)


def lost(error: BaseException) -> bool:
    """Whether an error of XLA's or of jax.distributed's says that another process does not answer."""
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and _GONE.search(str(error)) is not None


@contextlib.contextmanager
def together() -> Iterator[None]:
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
