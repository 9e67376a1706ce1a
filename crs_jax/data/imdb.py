"""Makes ReDial's metadata file (genres and people of its films) from IMDb's public tables.

  python -m crs_jax.data.imdb --catalogue=movies_with_mentions.csv --imdb=FOLDER --out=movies_metadata.json
  python -m crs_jax.data.imdb --catalogue=community-datasets/re_dial --imdb=FOLDER --out=movies_metadata.json
  python -m crs_jax.main --config=configs/redial_ppo.py --config.data.metadata=movies_metadata.json

  --catalogue  ReDial's list of films; or a dataset on the hub, OWNER/NAME or OWNER/NAME@REVISION, whose dialogues
               name the films
  --imdb       the folder with title.basics.tsv.gz, title.principals.tsv.gz and name.basics.tsv.gz, from
               https://datasets.imdbws.com (for personal and non-commercial use, which holds for what is made of them)
  --out        the file to make
  --on_error   of a line that cannot be read: raise, or skip (counted). Default: raise

A film is found by its title (without case, accents, punctuation and leading article) and year: the same year, else one
year off where that leaves one title; films before series before shorts. A short or a special of the same year comes
after a film one year off. What is still alike is ambiguous: it is the
title with the most principals, then the older entry. A film without a year needs a title that one film alone has.
The tables have no plots. They are read line by line, in some minutes; what is kept is what the catalogue names.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import Any

from crs_jax.data import redial
from crs_jax.data.catalogue import Item
from crs_jax.data.imdb_tables import BASICS, MISSING, NAMES, PRINCIPALS, Tables
from crs_jax.data.records import Faults
from crs_jax.data.title_matching import AMBIGUOUS, BY_TITLE, EXACT, KINDS, NEAR, UNMATCHED, Title, Wanted, choose
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json
from crs_jax.runtime.program import Parser, run_program
from crs_jax.runtime.progress import print_summary, say

STARS = 3  # most of a film, as in the file that others made for ReDial
ROLES = {"director": "director", "writer": "writer", "actor": "star", "actress": "star", "self": "star"}
PARTS = ("director", "writer", "star")
People = Mapping[str, Mapping[str, list[str]]]


def catalogue_items(source: str) -> list[Item]:
    """The films of a movie list, or of a dataset on the hub (or a folder in its layout).

    Raises:
      InputError: neither can be read.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return [item for _, item in redial.movie_list(path, Faults("raise"))]
    if path.suffix == ".csv":
        raise InputError(f"--catalogue={source}: no such file: give ReDial's {redial.MOVIES}")
    hub, _, revision = source.partition("@")
    data = types.SimpleNamespace(on_error="raise", revision=revision or "main")
    with tempfile.TemporaryDirectory(prefix="imdb-") as scratch:
        try:
            return list(redial.parse_hub(hub, data, pathlib.Path(scratch)).catalogue.items)
        except InputError as error:
            raise InputError(f"--catalogue={source}: no such file here, and as a dataset: {error}") from None


def join(items: Sequence[Item], tables: Tables) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Metadata by item id as the loader reads them (`redial.py`), and counts: of items by how they were found, and of
    those that have each field.
    """
    wanted = Wanted(items)
    for where, row in tables.rows(BASICS):
        title = _title(tables, where, row)
        if title:
            wanted.offer(title)
    shortlists = wanted.shortlists()
    titles = {title.imdb_id: title for _, found in shortlists for title in found}
    people = _principals(tables, titles)
    chosen = {item.item_id: choose(found) for item, (_, found) in zip(items, shortlists, strict=True) if found}
    billed = (people[title.imdb_id].values() for title in chosen.values())
    names = _names(tables, {person for parts in billed for ids in parts for person in ids})
    metadata = {item_id: _entry(title, people[title.imdb_id], names) for item_id, title in chosen.items()}
    how = collections.Counter(how for how, _ in shortlists)
    counts = {"items": len(items)} | {name: how[name] for name in (EXACT, NEAR, BY_TITLE, AMBIGUOUS, UNMATCHED)}
    for field in ("genre", *PARTS):
        counts[f"with {field}"] = sum(bool(entry[field]) for entry in metadata.values())
    return metadata, counts


def _title(tables: Tables, where: str, row: list[str]) -> Title | None:
    """A row that can be an item; one without a year is not out yet."""
    imdb_id, kind, primary, original, _, start, _, _, genres = row
    if kind not in KINDS or start == MISSING:
        return None
    number, year = tables.number(where, "tconst", imdb_id, "tt"), tables.number(where, "startYear", start)
    if number is None or year is None:
        return None
    known = () if genres == MISSING else tuple(genre.lower() for genre in genres.split(",") if genre)
    return Title(imdb_id, number, kind, primary, original, year, known)


def _principals(tables: Tables, titles: dict[str, Title]) -> dict[str, dict[str, list[str]]]:
    """People's ids by title and part, in billing order; counts each title's rows."""
    billed: dict[str, list[tuple[int, str, str]]] = {imdb_id: [] for imdb_id in titles}
    for where, row in tables.rows(PRINCIPALS, {imdb_id.encode() for imdb_id in titles}):
        imdb_id, ordering, person, category = row[:4]
        titles[imdb_id].principals += 1
        place = tables.number(where, "ordering", ordering)
        if place is not None and category in ROLES:
            billed[imdb_id].append((place, ROLES[category], person))
    people = {}
    for imdb_id, rows in billed.items():
        by_part = {part: list(dict.fromkeys(who for _, of, who in sorted(rows) if of == part)) for part in PARTS}
        people[imdb_id] = {**by_part, "star": by_part["star"][:STARS]}
    return people


def _names(tables: Tables, wanted: set[str]) -> dict[str, str]:
    rows = tables.rows(NAMES, {person.encode() for person in wanted})
    return {row[0]: row[1] for _, row in rows if row[1] != MISSING}


def _entry(title: Title, people: Mapping[str, list[str]], names: Mapping[str, str]) -> dict[str, Any]:
    known = {part: [names[person] for person in people[part] if person in names] for part in PARTS}
    name = f"{title.primary} ({title.year})"
    return {"name": name, "genre": list(title.genres), "plot": "", **known, "imdb_id": title.imdb_id}


def main(argv: Sequence[str]) -> None:
    """Reads the flags and does it."""
    parser = Parser(prog="python -m crs_jax.data.imdb", description=__doc__, usage=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name in ("catalogue", "imdb", "out"):
        parser.add_argument(f"--{name}", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    out = pathlib.Path(given.out).expanduser()
    if out.exists():
        raise InputError(f"--out={out}: is there already; name a new file")
    tables = Tables(pathlib.Path(given.imdb).expanduser(), given.on_error == "skip")
    metadata, counts = join(catalogue_items(given.catalogue), tables)
    for line in tables.skipped[:5]:
        say(f"skipped {line}")
    if tables.skipped:
        counts["lines skipped"] = len(tables.skipped)
    write_json(out, metadata)
    print_summary(f"{out}: {len(metadata):,} films", counts)


if __name__ == "__main__":
    sys.exit(run_program(main))
