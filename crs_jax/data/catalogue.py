"""The catalogue: what can be recommended, and what is known of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable

from crs_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Item:
    """One item. Unknown fields stay empty.

    Attributes:
      item_id: the corpus' own id.
      title: as a person writes it, without the year.
      year: of release.
      genres, people: lower-case genres; directors, writers and actors (authors for books).
      plot: a sentence or two.
    """

    item_id: str
    title: str
    year: int | None = None
    genres: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    plot: str = ""

    @property
    def name(self) -> str:
        """Title with year, as shown to people."""
        return f"{self.title} ({self.year})" if self.year else self.title

    def describe(self, max_people: int = 5) -> str:
        """One text with all that is known, for the sentence encoder."""
        parts = [self.name]
        if self.genres:
            parts.append(", ".join(self.genres))
        if self.people:
            parts.append("with " + ", ".join(self.people[:max_people]))
        if self.plot:
            parts.append(self.plot)
        return ". ".join(parts)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items in a fixed order: an item's index here is its row in every table and ranking."""

    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if len(self.index) != len(self.items):
            seen: set[str] = set()
            twice = next(i.item_id for i in self.items if i.item_id in seen or seen.add(i.item_id))  # type: ignore[func-returns-value]
            raise InputError(f"catalogue: item id {twice!r} stands twice; ids must be unique")

    def __len__(self) -> int:
        return len(self.items)

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Row of each item id."""
        return {item.item_id: row for row, item in enumerate(self.items)}

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Title with year of each item id."""
        return {item.item_id: item.name for item in self.items}

    def rows(self, item_ids: Iterable[str]) -> list[int]:
        """Rows of the ids; `InputError` names an id that is not in the catalogue."""
        try:
            return [self.index[item_id] for item_id in item_ids]
        except KeyError as error:
            raise InputError(f"item id {error.args[0]!r} is not in the catalogue of {len(self)} items") from None

    def save(self, path: pathlib.Path) -> None:
        """Writes JSON, one item a line."""
        lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in self.items]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: pathlib.Path) -> Catalogue:
        """Reads what `save` wrote; `InputError` names the line that cannot be read."""
        items = []
        for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
            try:
                record = json.loads(line)
                record["genres"], record["people"] = tuple(record["genres"]), tuple(record["people"])
                items.append(Item(**record))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}:{number}: not a catalogue item ({error})") from None
        return cls(tuple(items))
