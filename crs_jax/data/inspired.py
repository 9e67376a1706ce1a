"""INSPIRED (Hayati et al. 2020): a dialogue a line, `train.jsonl` and `dev.jsonl`; dev is the test part.

The items of a message are its `movie` list; each is looked for in the text by its title, with and without the year,
and by `movie_name`. An annotation whose title the text does not hold (the lists come from a machine) is no mention.
The catalogue is all titles of both files in order of first annotation; an item's id is its name there.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from crs_jax.data import mentions, records
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.records import Faults, Parsed, Record, RecordError
from crs_jax.runtime.errors import InputError

TRAIN, TEST = "train.jsonl", "dev.jsonl"
_ROLES = {"SEEKER": SEEKER, "RECOMMENDER": RECOMMENDER}
_YEAR = re.compile(r"\s*\(([0-9]{4})?[^()]*\)?$")


def split_year(name: str) -> tuple[str, int | None]:
    """'Joker (2019)' -> ('Joker', 2019); 'Akira ()' -> ('Akira', None); a cut-off 'Outbreak (1995' has its year too."""
    name = " ".join(name.split())
    match = _YEAR.search(name)
    if not match or not match.start():
        return name, None
    return name[: match.start()], int(match.group(1)) if match.group(1) else None


def files(folder: pathlib.Path, data: Any) -> list[pathlib.Path]:
    """The files of the corpus in `folder`; `InputError` names one that is missing."""
    for name in (TRAIN, TEST):
        if not (folder / name).is_file():
            raise InputError(f"config.data.dir={str(folder)!r}: no file {name!r}: give the folder of INSPIRED's files")
    return [folder / TRAIN, folder / TEST]


def parse(folder: pathlib.Path, data: Any, scratch: pathlib.Path) -> Parsed:
    """Reads both files."""
    faults = Faults(data.on_error)
    items: dict[str, Item] = {}
    parts = []
    for name in (TRAIN, TEST):
        part = []
        for record in records.read_lines(folder / name, scratch):
            dialogue = faults.attempt(record.where, lambda record=record: _dialogue(record, items))  # type: ignore[misc]
            if dialogue:
                part.append(dialogue)
        parts.append(part)
    return Parsed(Catalogue(tuple(items.values())), parts[0], parts[1], faults.skipped)


def _dialogue(record: Record, items: dict[str, Item]) -> Dialogue:
    """One dialogue; adds its titles to `items` once all of it is known to be sound."""
    turns = []
    titles: dict[str, Item] = {}
    for number, message in enumerate(records.decode_list(record.value)):
        at = f"[{number}]."
        text = records.clean(records.field(message, "text", "text", at))
        role = records.field(message, "role", "text", at)
        if role not in _ROLES:
            raise RecordError(f"field '{at}role': found {role!r}, expected SEEKER or RECOMMENDER")
        candidates = _candidates(message, at)
        titles |= {c.item_id: Item(c.item_id, *split_year(c.item_id)) for c in candidates}
        if text:
            turns.append(Turn(_ROLES[role], *mentions.place(text, candidates)))
    if not turns:
        raise RecordError("found no message with text, expected at least one")
    for item_id, item in titles.items():
        items.setdefault(item_id, item)
    return Dialogue(record.source, tuple(turns), source=record.source)


def _candidates(message: Mapping[str, Any], at: str) -> list[mentions.Candidate]:
    names, written = (records.texts(message, field, at) for field in ("movie", "movie_name"))
    aligned = written if len(written) == len(names) else [""] * len(names)
    found = []
    for name, surface in zip(names, aligned, strict=True):
        title = split_year(name)[0]
        if re.search(r"\w", title):
            _, colon, subtitle = title.partition(": ")
            later = (subtitle,) if colon and len(subtitle.split()) > 1 else ()
            found.append(mentions.Candidate(name, (name, title, surface, *later)))
    return found
