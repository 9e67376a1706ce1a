"""Registries: what there is of one kind, by name; a plugin adds to them (`plugins.py`)."""

from __future__ import annotations

from typing import TypeVar

from crs_jax.runtime.errors import InputError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name; a name is given once.

    Args:
      kind: what an entry is, for messages.
      entries: the first ones.
    """

    def __init__(self, kind: str, entries: dict[str, T]):
        super().__init__(entries)
        self.kind = kind

    def __setitem__(self, name: str, entry: T) -> None:
        if name in self:
            raise InputError(f"the {self.kind} {name!r} is there already; give yours another name")
        super().__setitem__(name, entry)
