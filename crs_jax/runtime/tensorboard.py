"""TensorBoard's event files, written through tensorboardX without TensorFlow and without its queue.

An event is on its way to the disk when a method returns, as a line of `metrics.jsonl` is: what a killed run had logged
before its last checkpoint is there when it goes on.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_files = itertools.count()
_MARKDOWN = re.compile(r"([\\`*_\[\]|])")  # what means something within a line


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, HTML in it too; its lines stay lines."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;")
    return "<br>".join(_MARKDOWN.sub(r"\\\1", line) for line in plain.splitlines())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown that shows words as they are; numbers with their sign, None and NaN as a dash."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            value = f"{value:+.3f}" if math.isfinite(value) else None
        return "–" if value is None else markdown(str(value))

    lines = [[shown(value) for value in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Board:
    """One event file in a folder; its reader takes all files of the folder for one run.

    Args:
      folder: made where it is missing.
      purge_step: readers forget what earlier files of the folder hold of this step and of later ones.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        # The library names files by the second, so two of one folder would be one.
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{next(_files)}")
        if purge_step is not None:
            from tensorboardX.proto.event_pb2 import SessionLog

            start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
            for _ in range(2):  # TensorBoard takes the first of a folder for no restart
                self._write(purge_step, session_log=start)

    def _write(self, step: int, **what) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        self._file.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, in one event."""
        from tensorboardX.proto.summary_pb2 import Summary

        parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=parts))

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text, which TensorBoard shows as Markdown."""
        from tensorboardX.summary import text

        self._write(step, summary=text(name, markdown))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """A histogram of finite numbers, at least one."""
        from tensorboardX.summary import histogram

        self._write(step, summary=histogram(name, values, bins=30))

    def close(self) -> None:
        self._file.close()
