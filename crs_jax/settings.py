"""The kinds of settings that `configs/common.py` lists: each has a default, a meaning, and a rule for its values."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Collection, Iterator
from typing import Any

from crs_jax.data.records import clipped


class Setting(abc.ABC):
    """One setting.

    Attributes:
      default: its value where no config file and no flag changes it.
      meaning: one line of plain text, with the unit.
    """

    default: Any
    meaning: str

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """What its values are, in messages."""

    @abc.abstractmethod
    def refusal(self, value: Any) -> str:
        """The rule that `value` breaks, such as "must be at least 1"; empty where it breaks none."""

    @property
    def allowed(self) -> str:
        """Bounds or choices, for the help; empty where there are none."""
        return ""


@dataclasses.dataclass(frozen=True)
class Number(Setting):
    """A number from `least` to `most`, both allowed; whole where the default is.

    Attributes:
      also: a value below `least` that has a meaning of its own, and this meaning.
    """

    default: float
    least: float
    most: float
    meaning: str
    also: tuple[float, str] | None = None

    @property
    def kind(self) -> str:
        return "a whole number" if isinstance(self.default, int) else "a number"

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return self.least if self.also is None else self.also[0], self.most

    def refusal(self, value: Any) -> str:
        whole, (low, high) = isinstance(self.default, int), self.bounds
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
            return f"must be {self.kind}"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if value < low:
            return f"must be at least {_written(low)}"
        if self.also is not None and value != low and value < self.least:
            return f"must be {_written(low)} ({self.also[1]}) or at least {_written(self.least)}"
        return "" if value <= high else f"must lie between {_written(low)} and {_written(high)}"

    @property
    def allowed(self) -> str:
        also = "" if self.also is None else f"{_written(self.also[0])} ({self.also[1]}), or "
        return f"{also}{_written(self.least)} to {_written(self.most)}"


@dataclasses.dataclass(frozen=True)
class Flag(Setting):
    """True or false."""

    default: bool
    meaning: str
    kind = "true or false"

    def refusal(self, value: Any) -> str:
        return "" if type(value) is bool else f"must be {self.kind}"


@dataclasses.dataclass(frozen=True)
class Text(Setting):
    """Any text."""

    default: str
    meaning: str
    kind = "text"

    def refusal(self, value: Any) -> str:
        if type(value) is not str:
            return f"must be {self.kind}"
        return "must be text without zero bytes" if "\0" in value else ""


@dataclasses.dataclass(frozen=True)
class Choice(Setting):
    """One of some names; a registry's are those that it has when a value is checked."""

    default: str
    choices: Collection[str]
    meaning: str
    kind = "text"

    def refusal(self, value: Any) -> str:
        if type(value) is not str:
            return f"must be {self.kind}"
        return "" if value in self.choices else f"must be one of {self.allowed}"

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)


@dataclasses.dataclass(frozen=True)
class Choices(Setting):
    """A tuple of some names, or of none."""

    default: tuple[str, ...]
    choices: Collection[str]
    meaning: str
    kind = "a tuple"

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (tuple, list)):  # JSON gives a list back
            return f"must be {self.kind}"
        unknown = [each for each in value if not isinstance(each, str) or each not in self.choices]
        return f"{clipped(repr(unknown[0]), 200)} is none of {self.allowed}" if unknown else ""

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)


@dataclasses.dataclass(frozen=True)
class Cutoffs(Setting):
    """A tuple of ranks at which lists are cut, at least one, in rising order."""

    default: tuple[int, ...]
    meaning: str
    kind = "a tuple"

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (tuple, list)):
            return f"must be {self.kind}"
        if value and all(type(k) is int and k >= 1 for k in value) and list(value) == sorted(set(value)):
            return ""
        return f"must be cut-offs of at least 1 in rising order, such as '{self.default}'"


class Group:
    """Settings, and groups of them, in the order in which people read them.

    Args:
      meaning: what they are of, on one line.
      members: by name.
    """

    def __init__(self, meaning: str, /, **members: Setting | Group):
        self.meaning, self.members = meaning, members

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Setting | Group]]:
        """All members, those of groups too, by path: "ppo", then "ppo.clip"."""
        for name, member in self.members.items():
            yield prefix + name, member
            if isinstance(member, Group):
                yield from member.walk(f"{prefix}{name}.")

    def flat(self) -> dict[str, Setting]:
        """The settings alone, by path."""
        return {path: member for path, member in self.walk() if isinstance(member, Setting)}

    def defaults(self) -> dict[str, Any]:
        """The defaults by name; those of a group are a dictionary."""
        return {
            name: member.defaults() if isinstance(member, Group) else member.default
            for name, member in self.members.items()
        }


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
