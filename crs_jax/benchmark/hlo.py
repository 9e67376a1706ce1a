"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

OPERATIONS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # else 4
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(-start)?\(")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One kind of exchange.

    Attributes:
      operation: of `OPERATIONS`.
      result: type and shape of what one device gets, `f32[1024,4096]`.
      places: how often it stands in the program.
      runs: how often it is carried out, with the trips of the loops around it.
    """

    operation: str
    result: str
    places: int
    runs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(int(n) for n in self.result.split("[")[1].rstrip("]").split(",") if n)

    @property
    def bytes_each(self) -> int:
        """That one device gets from one."""
        return math.prod(self.shape) * BYTES.get(self.result.split("[")[0], 4)


def collectives(text: str, unknown_trips: int = 1) -> list[Collective]:
    """All exchanges of a program, the largest first.

    Args:
      text: of the optimised HLO module.
      unknown_trips: of a loop whose trips the compiler does not know: one that ends early.
    """
    lines: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[1]
            lines[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            lines[name].append(line)
    times = _times(lines, entry, unknown_trips)
    places: collections.Counter = collections.Counter()
    runs: collections.Counter = collections.Counter()
    for computation, body in lines.items():
        for line in body:
            if match := _COLLECTIVE.search(line):
                for result in {f"{t}[{shape}]" for t, shape in _TYPE.findall(match[1]) if shape or t != "u32"}:
                    places[match[2], result] += 1
                    runs[match[2], result] += times[computation]
    found = [Collective(kind, result, places[kind, result], runs[kind, result]) for kind, result in places]
    return sorted(found, key=lambda each: -each.bytes_each)


def _times(lines: dict[str, list[str]], entry: str, unknown_trips: int) -> collections.Counter:
    """How often each computation runs in one run of the program."""
    times: collections.Counter = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in lines.get(name, ()):
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            if not called:
                continue
            trips = 1
            if " while(" in line:
                known = _TRIPS.search(line)
                trips = int(known[1]) if known else unknown_trips
            for other in called:
                visit(other, count * trips)

    visit(entry, 1)
    return times
