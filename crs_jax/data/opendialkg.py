"""OpenDialKG (Moon et al. 2019): the official CSV, per-turn jsonl of its movie dialogues, or whole book dialogues.

What a folder holds decides: `opendialkg.csv` (with `items.json`, else `opendialkg_triples.txt`, else its own paths to
tell what an item is), or `train.jsonl`, `valid.jsonl` and `items.json`; with `config.data.domain=books`
`books_dialogues.jsonl` comes first. The user is the seeker, the assistant the recommender.

Items are annotated beside the text, so titles are looked for in it: those of a message's own annotation in any case,
the dialogue's others letter by letter. A title that is also a genre ('Drama', 'War') is no mention: nearly all are
the genre. The rows of one `dialog_id` make one dialogue; it is test's if `valid.jsonl` holds any of them.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from crs_jax.data import mentions, records
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.records import Faults, Parsed, Record, RecordError
from crs_jax.runtime.errors import InputError

CSV, TRIPLES, ITEMS = "opendialkg.csv", "opendialkg_triples.txt", "items.json"
TRAIN, TEST, BOOKS = "train.jsonl", "valid.jsonl", "books_dialogues.jsonl"
_ROLES = {"user": SEEKER, "assistant": RECOMMENDER}
_MADE_BY = {"starred_actors", "directed_by"}  # relations whose head is a film
_PEOPLE = ("directed_by", "written_by", "starred_actors")
Triple = tuple[str, str, str]


def files(folder: pathlib.Path, data: Any) -> list[pathlib.Path]:
    """The files of the corpus in `folder` that `config.data.domain` needs; `InputError` names what is missing."""
    if data.domain not in ("movies", "books"):
        raise InputError(f"config.data.domain is {data.domain!r}: set it to 'movies' or 'books'")
    known = [folder / name for name in (ITEMS, TRIPLES) if (folder / name).is_file()]
    if data.domain == "books" and (folder / BOOKS).is_file():
        return [folder / BOOKS, *known]
    if (folder / CSV).is_file():
        return [folder / CSV, *known]
    needed = (TRAIN, TEST, ITEMS) if data.domain == "movies" else (BOOKS,)
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(
                f"config.data.dir={str(folder)!r}: found neither {CSV!r} nor {name!r}: give OpenDialKG's folder"
            )
    return [folder / name for name in needed]


def parse(folder: pathlib.Path, data: Any, scratch: pathlib.Path) -> Parsed:
    """Reads what the folder holds; `test` is empty for the CSV and the books, which have no parts."""
    faults = Faults(data.on_error)
    first = files(folder, data)[0].name
    items = _item_list(folder / ITEMS, faults) if (folder / ITEMS).is_file() else {}
    if first == BOOKS:
        return _parse_books(records.read_lines(folder / BOOKS, scratch), items, faults)
    if first == CSV:
        triples = _triples(folder / TRIPLES) if (folder / TRIPLES).is_file() else None
        rows = list(records.read_csv_column(folder / CSV, "Messages", scratch))
        return _parse_messages(rows, items if data.domain == "movies" else {}, triples, data.domain, faults)
    rows_by_part = [list(records.read_lines(folder / name, scratch)) for name in (TRAIN, TEST)]
    return _parse_turns(rows_by_part[0], rows_by_part[1], items, faults)


def parse_hub(hub: str, data: Any, scratch: pathlib.Path) -> Parsed:
    """Reads a dataset repository whose rows have the official `Messages` column; its splits are put together."""
    splits = records.read_hub(hub, data.revision, scratch)
    rows = [r for part in splits.values() for r in part]
    if rows and "Messages" not in rows[0].value:
        raise InputError(f"config.data.hub={hub!r}: found columns {sorted(rows[0].value)}, expected 'Messages'")
    encoded = [Record(r.where, r.source, str(r.value["Messages"]).encode("utf-8", "replace")) for r in rows]
    return _parse_messages(encoded, {}, None, data.domain, Faults(data.on_error))


def _parse_turns(train: list[Record], test: list[Record], items: dict[str, Item], faults: Faults) -> Parsed:
    titles = _Titles(items.values())
    by_dialogue: dict[str, list[tuple[Record, Mapping[str, Any]]]] = {}
    for record in (*train, *test):
        value = faults.attempt(record.where, lambda record=record: _turn_record(record.value))  # type: ignore[misc]
        if value is not None:
            by_dialogue.setdefault(value["dialog_id"], []).append((record, value))
    of_test = {record.source for record in test}
    parts: tuple[list[Dialogue], list[Dialogue]] = ([], [])
    for dialog_id, rows in by_dialogue.items():
        record, longest = max(rows, key=lambda row: row[1]["turn_id"])
        said = [*longest["context"], longest["resp"]]
        sound = [
            value
            for other, value in rows
            if faults.attempt(other.where, lambda v=value, s=said: _agrees(v, s))  # type: ignore[misc]
        ]
        recommended = {value["turn_id"]: value["rec"] for value in sound}
        named = [name for value in sound for name in (*value["rec"], *value["entity"])]
        who = (RECOMMENDER, SEEKER)
        messages = [(who[(longest["turn_id"] - t) % 2], text, recommended.get(t, ())) for t, text in enumerate(said)]
        dialogue = faults.attempt(
            record.where,
            lambda i=dialog_id, r=record, m=messages, n=named: titles.dialogue(i, r.source, m, n),  # type: ignore[misc]
        )
        if dialogue:
            parts[any(other.source in of_test for other, _ in rows)].append(dialogue)
    return Parsed(Catalogue(tuple(items.values())), *parts, faults.skipped)


def _turn_record(raw: Any) -> dict[str, Any]:
    record = records.decode_object(raw)
    turn = records.field(record, "turn_id", "a whole number")
    context = [records.clean(records.check(t, "text", "context")) for t in records.field(record, "context", "a list")]
    if turn < 1 or len(context) != turn:
        raise RecordError(f"field 'turn_id': found {turn}, expected {len(context)}, the messages in 'context', above 0")
    return {
        "dialog_id": records.identity(record, "dialog_id"),
        "turn_id": turn,
        "context": context,
        "entity": records.texts(record, "entity"),
        "rec": records.texts(record, "rec"),
        "resp": records.clean(records.field(record, "resp", "text")),
    }


def _agrees(value: Mapping[str, Any], said: list[str]) -> bool:
    turn = value["turn_id"]
    if [*value["context"], value["resp"]] != said[: turn + 1]:
        raise RecordError(
            f"field 'context': found other messages than the longest record of dialog_id {value['dialog_id']} has"
        )
    return True


def _parse_books(lines: Iterable[Record], films: Mapping[str, Item], faults: Faults) -> Parsed:
    decoded = []
    items: dict[str, Item] = {}
    for record in lines:
        messages = faults.attempt(record.where, lambda record=record: _book_messages(record.value))  # type: ignore[misc]
        if messages is not None:
            decoded.append((record, messages))
            items |= {
                n: Item(n, n) for _, _, names in messages for n in names if re.search(r"\w", n) and n not in items
            }
    titles = _Titles(items.values(), genres={g for film in films.values() for g in film.genres})
    built = (
        faults.attempt(r.where, lambda r=r, m=m: titles.dialogue(r.source, r.source, m, ()))  # type: ignore[misc]
        for r, m in decoded
    )
    return Parsed(Catalogue(tuple(items.values())), [d for d in built if d], [], faults.skipped)


def _book_messages(raw: Any) -> list[tuple[str, str, list[str]]]:
    messages = []
    for number, message in enumerate(records.decode_list(raw)):
        at = f"[{number}]."
        role = records.field(message, "role", "text", at)
        text = records.clean(records.field(message, "text", "text", at))
        messages.append((_role(role, f"{at}role"), text, records.texts(message, "item", at)))
    return messages


def _role(name: str, path: str) -> str:
    if name not in _ROLES:
        raise RecordError(f"field {path!r}: found {name!r}, expected user or assistant")
    return _ROLES[name]


def _parse_messages(
    rows: Sequence[Record], items: dict[str, Item], triples: Iterable[Triple] | None, domain: str, faults: Faults
) -> Parsed:
    """The official column. A path belongs to the message after it; dialogues that name no item are another domain's."""
    decoded = []
    for record in rows:
        messages = faults.attempt(record.where, lambda record=record: _csv_messages(record.value))  # type: ignore[misc]
        if messages is not None:
            decoded.append((record, messages))
    if not items:
        walked = (triple for _, messages in decoded for _, _, path in messages for triple in path)
        items = _items_of(itertools.chain(triples or (), walked), domain)
    titles = _Titles(items.values())
    dialogues = []
    for record, messages in decoded:
        named = [name for _, _, path in messages for head, _, tail in path for name in (head, tail)]
        spoken = [(role, text, [n for h, _, t in path for n in (h, t)]) for role, text, path in messages if text]
        dialogue = faults.attempt(
            record.where,
            lambda r=record, m=spoken, n=named: titles.dialogue(r.source, r.source, m, n),  # type: ignore[misc]
        )
        if dialogue:
            dialogues.append(dialogue)
    ours = [d for d in dialogues if any(turn.items for turn in d.turns)]
    note = f"left out {len(dialogues) - len(ours)} dialogues that name none of the {len(items)} {domain}"
    return Parsed(Catalogue(tuple(items.values())), ours, [], faults.skipped, (note,))


def _csv_messages(raw: Any) -> list[tuple[str, str, list[Triple]]]:
    messages = []
    path: list[Triple] = []
    for number, message in enumerate(records.decode_list(raw)):
        at = f"Messages[{number}]."
        role = _role(records.field(message, "sender", "text", at), f"{at}sender")
        if records.field(message, "type", "text", at) == "chat":
            messages.append((role, records.clean(records.field(message, "message", "text", at)), path))
            path = []
        else:
            path = path + _path(message, at)
    return messages


def _path(action: Mapping[str, Any], at: str) -> list[Triple]:
    """The triples of a chosen path `[score, [[head, relation, tail], ...], text]`; none of any other action."""
    metadata = action.get("metadata")
    path = metadata.get("path") if isinstance(metadata, Mapping) else None
    if path is None:
        return []
    steps = path[1] if isinstance(path, list) and len(path) > 1 else None
    if not isinstance(steps, list) or not all(isinstance(s, list) and [*map(type, s)] == [str] * 3 for s in steps):
        raise RecordError(f"field '{at}metadata.path': found {records.describe(path)}, expected [score, triples, text]")
    return [(records.clean(h), r, records.clean(t)) for h, r, t in steps]


class _Titles:
    """Looks for the titles of a catalogue in messages."""

    def __init__(self, items: Iterable[Item], genres: Iterable[str] = ()) -> None:
        kept = list(items)
        self.genres = {g.casefold() for item in kept for g in item.genres} | {g.casefold() for g in genres}
        self.ids: dict[str, str] = {}
        for item in kept:
            if item.title.casefold() not in self.genres:
                self.ids.setdefault(item.title, item.item_id)

    def dialogue(
        self, name: str, source: str, messages: Iterable[tuple[str, str, Sequence[str]]], named: Sequence[str]
    ) -> Dialogue:
        """A dialogue of (role, text, titles annotated there); `named` are titles annotated anywhere in it."""
        messages = [(role, text, annotated) for role, text, annotated in messages if text]
        everywhere = dict.fromkeys([*named, *(n for _, _, annotated in messages for n in annotated)])
        turns = []
        for role, text, annotated in messages:
            candidates = [
                mentions.Candidate(self.ids[n], (n, re.sub(r"\s*\([^()]*\)$", "", n)), n in annotated)
                for n in everywhere
                if n in self.ids
            ]
            turns.append(Turn(role, *mentions.place(text, candidates)))
        if not turns:
            raise RecordError("found no message with text, expected at least one")
        return Dialogue(name, tuple(turns), source=source)


def _item_list(path: pathlib.Path, faults: Faults) -> dict[str, Item]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}): correct the file") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: found {records.describe(table)}, expected an object by item id: correct the file")
    items = {}
    for item_id, entry in table.items():

        def item(item_id: str = item_id, entry: Any = entry) -> Item:
            title = records.clean(records.field(entry, "name", "text"))
            year = str(entry.get("year") or "")
            people = [p for part in ("director", "writer", "actor") for p in records.texts(entry, part)]
            genres = [g.lower() for g in records.texts(entry, "genre")]
            known = int(year) if re.fullmatch("[0-9]{4}", year) else None
            return Item(item_id, title, known, tuple(dict.fromkeys(genres)), tuple(dict.fromkeys(people)))

        found = faults.attempt(f"{path}: item {item_id!r}", item)
        if found:
            items[item_id] = found
    return items


def _triples(path: pathlib.Path) -> Iterator[Triple]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            parts = records.clean(line).split("\t")
            if len(parts) == 3:
                yield parts[0], parts[1], parts[2]


def _items_of(triples: Iterable[Triple], domain: str) -> dict[str, Item]:
    """Items by what the graph says of them: a film has actors or a director, a book a writer and neither of those."""
    facts: dict[str, dict[str, dict[str, None]]] = {}
    for head, relation, tail in triples:
        if relation.startswith("~"):
            head, relation, tail = tail, relation[1:], head
        facts.setdefault(head, {}).setdefault(relation.strip().lower().replace(" ", "_"), {})[tail] = None
    items = {}
    for title, about in facts.items():
        film = bool(_MADE_BY & about.keys())
        if film if domain == "movies" else not film and "written_by" in about:
            years = [int(y) for y in about.get("release_year", ()) if re.fullmatch("[0-9]{4}", y)]
            people = tuple(dict.fromkeys(p for relation in _PEOPLE for p in about.get(relation, ())))
            genres = tuple(dict.fromkeys(g.lower() for g in about.get("has_genre", ())))
            items[title] = Item(title, title, years[0] if years else None, genres, people)
    return items
