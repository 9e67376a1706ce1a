"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

OPERATIONS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # else 4
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> (.*) \{")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(-start)?\(")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^]]*)\] *\{([^}]*)\})")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BELOW = re.compile(r"^\s*ROOT .*compare\(%?([\w.-]+), %?([\w.-]+)\), direction=LT")
_DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ")


class Collective(NamedTuple):
    """One kind of exchange.

    Attributes:
      operation: of `OPERATIONS`.
      result: type and shape of what one device holds after it, `f32[1024,4096]`.
      group: devices that exchange with each other; 0 where the program does not say.
      places: how often it stands in the program.
      runs: how often it is carried out, with the trips of the loops around it.
    """

    operation: str
    result: str
    group: int
    places: int
    runs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(int(n) for n in self.result.split("[")[1].rstrip("]").split(",") if n)

    @property
    def bytes_each(self) -> int:
        """Of the result."""
        return math.prod(self.shape) * BYTES.get(self.result.split("[")[0], 4)

    @property
    def received(self) -> float:
        """Bytes that a device receives in all runs, of the others in its group, by the best algorithm on a ring."""
        n = max(self.group, 2)
        times = {"all-gather": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1,
                 "all-to-all": (n - 1) / n}  # fmt: skip
        return self.runs * self.bytes_each * times.get(self.operation, 1.0)


def collectives(text: str, unknown_trips: int = 1) -> list[Collective]:
    """All exchanges of a program, the largest first.

    Args:
      text: of the optimised HLO module.
      unknown_trips: of a loop whose trips the compiler does not know: one that ends early.
    """
    lines: dict[str, list[str]] = {}
    leaves: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[1]
            lines[name], leaves[name] = [], _results(head[2])
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            lines[name].append(line)
    times = _times(lines, entry, unknown_trips)
    places: collections.Counter = collections.Counter()
    runs: collections.Counter = collections.Counter()
    for computation, body in lines.items():
        for line in body:
            if match := _COLLECTIVE.search(line):
                operation, results = match[2], _results(match[1])
                if computation.startswith("all-reduce-scatter"):  # the TPU's way to write that: a sum, and a cut of it
                    operation, results = "reduce-scatter", leaves[computation]
                if match[3] and operation != "all-reduce":  # operands, results, and counters of what has begun
                    results = [each for each in results if each != "u32[]"]
                    results = results[len(results) // 2 :]
                for result in results:
                    places[operation, result, _group(line)] += 1
                    runs[operation, result, _group(line)] += times[computation]
    found = [Collective(kind, result, n, places[kind, result, n], runs[kind, result, n]) for kind, result, n in places]
    return sorted(found, key=lambda each: -each.bytes_each)


def _results(text: str) -> list[str]:
    """Types and shapes in a text, without their layouts."""
    return [f"{kind}[{shape}]" for kind, shape in _TYPE.findall(text)]


def _group(line: str) -> int:
    """Devices of a group: `[1,8]<=[8]`, `{{0,1},{2,3}}` or `mesh['a'=2,'b'=4] {'b'}`, parts of axes as `'b':(1)2`."""
    found = _GROUPS.search(line)
    if found is None or found[1] or found[2]:
        return 0 if found is None else int(found[1]) if found[1] else len(found[2].split(","))
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[3]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[4])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)


def _times(lines: dict[str, list[str]], entry: str, unknown_trips: int) -> collections.Counter:
    """How often each computation runs in one run of the program."""
    times: collections.Counter = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in lines.get(name, ()):
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            trips = (_trips(line, lines) or unknown_trips) if " while(" in line else 1
            for other in called:
                visit(other, count * trips)

    visit(entry, 1)
    return times


def _trips(line: str, lines: dict[str, list[str]]) -> int | None:
    """Of a loop: as the compiler has noted, or from its counter, which starts at 0; None where it may end early."""
    if known := _TRIPS.search(line):
        return int(known[1])
    parts = dict(re.findall(r"(condition|body)=%?([\w.-]+)", line))
    condition, body = (_by_name(lines.get(parts[part], [])) for part in ("condition", "body"))
    below = next((match for text in condition.values() if (match := _BELOW.match(text))), None)
    if below is None:
        return None
    limit, at = _constant(condition.get(below[2], "")), re.search(r"index=(\d+)", condition.get(below[1], ""))
    if limit is None or at is None:
        return None
    return -(-limit // _step(body, int(at[1])))


def _by_name(lines: list[str]) -> dict[str, str]:
    return {match[1]: line for line in lines if (match := _DEFINED.match(line))}


def _constant(line: str) -> int | None:
    found = re.search(r" constant\((\d+)\)", line)
    return int(found[1]) if found else None


def _step(body: dict[str, str], index: int) -> int:
    """What a loop's body adds to the counter at `index` of its state: 1, or more where the compiler unrolled it."""
    root = next((line for line in body.values() if line.lstrip().startswith("ROOT")), "")
    names = re.findall(r"%([\w.-]+)", root.split(" tuple(")[-1].split(")")[0])
    name, total = names[index] if index < len(names) else "", 0
    while (line := body.get(name, "")) and (added := re.search(r" add\(%([\w.-]+), %([\w.-]+)\)", line)):
        total += _constant(body.get(added[2], "")) or 0
        name = added[1]
    return max(total, 1)
