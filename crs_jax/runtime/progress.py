"""What a run shows while it works: progress with an ETA, tables, and the summary at start.

On a terminal, however narrow, these are rich bars and tables of its width; in a log file, plain lines of at most 80
columns.
"""

from __future__ import annotations

import functools
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

WIDTH = 80  # of plain output, columns
BAR = 10  # of a bar on a terminal, columns
BRIEF = 0.5  # seconds of work that leaves no line
_muted = False


def mute() -> None:
    """Shows nothing from now on: called by every process but the first."""
    global _muted
    _muted = True


@functools.cache
def _console():
    from rich.console import Console

    return Console(highlight=False)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def duration(seconds: float) -> str:
    """A length of time as people write it: `8 s`, `3:07 min`, `1:03 h`."""
    if not 0 <= seconds < 1e8:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


class Progress:
    """Progress of one long step, as a context manager.

    On a terminal a bar; elsewhere one plain line at most every `every` seconds, and one at the end. Progress inside
    progress adds a bar below.

    Args:
      total: units of work; None where it is not known.
      label: what is going on, a word or three.
      unit: plural name of one unit (`steps`, `texts`).
      enabled: False on every process but the first: then nothing is shown.
      done: units already done when it starts (a resumed stage); they do not count in the rate.
      every: seconds between two plain lines.
      clock: seconds, monotonic.
    """

    _live: Any = None  # the rich display that is on the terminal, shared by nested progress
    watcher: Callable[[], None] | None = None  # called at every update (`runtime/interruption.py`)

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = "steps",
        *,
        enabled: bool = True,
        done: int = 0,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.label, self.unit = total, label, unit
        self.done = self._first = done
        self._enabled, self._every, self._clock = enabled and not _muted, every, clock
        self._values: dict[str, str] = {}
        self._task: Any = None
        self._owner = self._spoke = False
        self._started = self._printed = clock()
        self._after_first: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        self._started = self._printed = self._clock()
        if self._enabled and _on_terminal():
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled:
            return
        brief = error is None and self._clock() - self._started < BRIEF
        if self._task is None:
            if self._spoke or not brief:
                self._print(final=True)
        elif self._owner:
            self._show(final=True)
            Progress._live.live.transient = brief  # then it goes as it came
            live, Progress._live = Progress._live, None
            live.stop()
        else:
            Progress._live.remove_task(self._task)

    def update(self, n: int = 1, **values: Any) -> None:
        """`n` more units are done; `values` (numbers or words) are shown until the next ones of the same name."""
        self.done += n
        if self._after_first is None:
            self._after_first = self._clock(), self.done
        if Progress.watcher is not None:
            Progress.watcher()
        if not self._enabled:
            return
        for name, value in values.items():
            self._values[name] = _number(value)
        if self._task is not None:
            self._show()
        elif self._clock() - self._printed >= self._every and self.done != self.total:
            self._print(final=False)

    def _rate(self) -> float:
        return (self.done - self._first) / max(self._clock() - self._started, 1e-9)

    def _left(self) -> float | None:
        """Seconds, by the units after the first update, which compiles; None while one unit is all there is."""
        if self.total is None or self.done - self._first < 2 or self._after_first is None:
            return None
        since, before = self._after_first
        rate = (self.done - before) / max(self._clock() - since, 1e-9) if self.done > before else self._rate()
        return max(self.total - self.done, 0) / rate

    def _rate_text(self) -> str:
        rate = self._rate()
        if self.done == self._first:
            return ""
        if rate < 1:
            return f"{1 / rate:.3g} s each"
        return f"{rate:,.0f} {self.unit}/s" if rate >= 100 else f"{rate:.3g} {self.unit}/s"

    def line(self, final: bool = False, width: int = WIDTH) -> str:
        """The plain line: count, time left (taken, at the end), rate, values; as much as fits in `width` columns.

        Where the first two do not fit, the unit goes, then the end of the label.
        """
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        when = ""
        if final:
            when = f"  in {duration(self._clock() - self._started)}"
        elif (left := self._left()) is not None:
            when = f"  {duration(left)} left"
        text = f"{self.label}: {count} {self.unit}{when}"
        if len(text) > width:
            end = f": {count}{when}"
            room = max(width - len(end), 2)
            label = self.label if len(self.label) <= room else self.label[: room - 1] + "…"
            text = label + end
        for part in [self._rate_text(), *(f"{name} {value}" for name, value in self._values.items())]:
            if part and len(text) + 2 + len(part) > width:
                break
            text += f"  {part}" if part else ""
        return text[:width]

    def _print(self, final: bool) -> None:
        self._printed, self._spoke = self._clock(), True
        _plain(self.line(final))

    def _show(self, final: bool = False) -> None:
        line = self.line(final, _console().width - BAR - 1)
        Progress._live.update(self._task, completed=self.done, line=line)

    def _start_bar(self) -> None:
        from rich import progress

        if Progress._live is None:
            self._owner = True
            columns = progress.BarColumn(bar_width=BAR), progress.TextColumn("{task.fields[line]}", markup=False)
            Progress._live = progress.Progress(*columns, console=_console())
            Progress._live.start()
        self._task = Progress._live.add_task(self.label, total=self.total, completed=self.done, line=self.label)


def _wrapped(text: str) -> str:
    """A line cut between words for the terminal, what goes on indented; a path stays whole, to be copied."""
    start = text.removesuffix(text.lstrip())
    entry = re.match(r" +\S+(?: \S+)* {2,}", text)  # of a summary: what goes on stands under the value
    hang = len(entry[0]) if entry and len(entry[0]) <= _console().width // 3 else len(start) + 2
    return textwrap.fill(
        text,
        _console().width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


_blank = True  # the last plain line


def _plain(text: str) -> None:
    """Prints lines of a log file; no two blank ones after each other."""
    global _blank
    if _blank:
        text = text.removeprefix("\n")
    print(text, flush=True)
    _blank = text == "" or text.endswith("\n")


def say(text: str, enabled: bool = True) -> None:
    """Prints a line, above the bars where some are on the terminal."""
    if not enabled or _muted:
        return
    if _on_terminal():
        _console().print(_wrapped(text), markup=False, soft_wrap=True)
    else:
        _plain(text)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int = WIDTH) -> Iterator[str]:
    """Lines of a plain table: first column left, the others right; one too wide goes on below, first column again."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    start = 1
    while True:
        end, used = start, widths[0]
        while end < len(columns) and (used + 2 + widths[end] <= width or end == start):
            used += 2 + widths[end]
            end += 1
        first = max(widths[0] - max(used - width, 0), 4)
        for number, row in enumerate(cells):
            name = row[0] if len(row[0]) <= first else row[0][: first - 1] + "…"
            text = [name.ljust(first)] + [row[i].rjust(widths[i]) for i in range(start, end)]
            yield "  ".join(text).rstrip()
            if number == 0:
                yield "-" * (used - widths[0] + first)
        if end >= len(columns):
            return
        yield ""
        start = end


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], enabled: bool = True) -> None:
    """Prints a table; cells are strings as they shall appear, the first column names the rows."""
    if not enabled or _muted:
        return
    if _on_terminal():
        lines = [_wrapped(title), *table_lines(columns, rows, _console().width)]
        _console().print("\n".join(["", *lines, ""]), markup=False, soft_wrap=True)
    else:
        _plain("\n".join(["", title, *table_lines(columns, rows), ""]))


def print_summary(title: str, entries: Mapping[str, Any], enabled: bool = True) -> None:
    """Prints names and values, one a line: devices and mesh, parameters, derived batch sizes, stages.

    A value that is a mapping prints as `a 1, b 2`, a sequence as `a, b`, a whole number with thousands separators.
    """
    if not enabled or _muted or not entries:
        return
    width = max(len(name) for name in entries)
    lines = [title] + [f"  {name.ljust(width)}  {_entry(value)}" for name, value in entries.items()]
    for line in lines:
        say(line)


def _entry(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_entry(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_entry(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
