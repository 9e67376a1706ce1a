"""ReDial (Li et al. 2018): official jsonl files in a folder, or a dataset repository on the hub.

The initiator of a conversation is the seeker, the respondent the recommender. A message names a movie as `@` and its
id; only ids of the movie list or of the conversation's `movieMentions` count, any other `@12` stays text. Messages
without text are dropped. The catalogue is the movie list in its order, then ids that only `movieMentions` names (an
id whose every name is null is unknown and stays text).

Feedback is the seeker's questionnaire; the recommender's answers stand in for a movie that the seeker's leaves out.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crs_jax.data import records
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.data.records import Faults, Parsed, Record, RecordError
from crs_jax.runtime.errors import InputError

HUB = "community-datasets/re_dial"
TRAIN, TEST, MOVIES, METADATA = (
    "train_data.jsonl",
    "test_data.jsonl",
    "movies_with_mentions.csv",
    "movies_metadata.json",
)
_MENTION = re.compile(r"@([0-9]+)")
_ID = re.compile(r"[0-9]+")
_YEAR = re.compile(r"^(.*\S)\s*\(([0-9]{4})\)$", re.DOTALL)


def split_year(name: str) -> tuple[str, int | None]:
    """'Scarface  (1983)' -> ('Scarface', 1983); spaces are collapsed."""
    name = " ".join(records.clean(name).split())
    match = _YEAR.match(name)
    return (match.group(1), int(match.group(2))) if match else (name, None)


def files(folder: pathlib.Path, data: Any) -> list[pathlib.Path]:
    """The files of the corpus in `folder`; `InputError` names one that is missing."""
    for name in (TRAIN, TEST, MOVIES):
        if not (folder / name).is_file():
            raise InputError(f"config.data.dir={str(folder)!r}: no file {name!r}: give the folder of ReDial's files")
    known = metadata_file(data, folder)
    return [*(folder / name for name in (TRAIN, TEST, MOVIES)), *([known] if known else [])]


def metadata_file(data: Any, folder: pathlib.Path | None = None) -> pathlib.Path | None:
    """`config.data.metadata`, else what the folder has; None where there is none.

    Raises:
      InputError: the setting names no file.
    """
    given = getattr(data, "metadata", "")  # runs of older versions have no such setting
    if given and not pathlib.Path(given).expanduser().is_file():
        raise InputError(f"config.data.metadata={given!r}: no such file: give what `python -m crs_jax.data.imdb` made")
    path = pathlib.Path(given).expanduser() if given else folder / METADATA if folder else None
    return path if path and path.is_file() else None


def parse(folder: pathlib.Path, data: Any, scratch: pathlib.Path) -> Parsed:
    """Reads the official files: train and test as given."""
    faults = Faults(data.on_error)
    movies = dict(movie_list(folder / MOVIES, faults))
    raw = {name: list(records.read_lines(folder / name, scratch)) for name in (TRAIN, TEST)}
    return _parse(raw[TRAIN], raw[TEST], movies, _metadata(metadata_file(data, folder), faults), faults)


def parse_hub(hub: str, data: Any, scratch: pathlib.Path) -> Parsed:
    """Reads a dataset repository with splits train and test; movies are those the conversations mention."""
    splits = records.read_hub(hub, data.revision, scratch)
    if missing := {"train", "test"} - set(splits):
        raise InputError(f"config.data.hub={hub!r}: no split {sorted(missing)[0]!r}: give a repository that has it")
    faults = Faults(data.on_error)
    return _parse(splits["train"], splits["test"], {}, _metadata(metadata_file(data), faults), faults)


def _parse(
    train: Iterable[Record], test: Iterable[Record], movies: dict[str, Item], metadata: dict[str, Item], faults: Faults
) -> Parsed:
    """Decodes, completes the catalogue from the mentions, then builds the dialogues."""
    decoded: list[list[tuple[Record, Mapping[str, Any]]]] = []
    for part in (train, test):
        kept = []
        for record in part:
            value = faults.attempt(record.where, lambda record=record: _checked(record.value))  # type: ignore[misc]
            if value is not None:
                kept.append((record, value))
        decoded.append(kept)
    for _, value in [*decoded[0], *decoded[1]]:
        for movie_id, name in _mentions(value).items():
            if name and movie_id not in movies and _ID.fullmatch(movie_id) and split_year(name)[0]:
                movies[movie_id] = Item(movie_id, *split_year(name))
    for movie_id, known in metadata.items():
        if movie_id in movies:
            item = movies[movie_id]
            movies[movie_id] = dataclasses.replace(known, title=item.title, year=item.year or known.year)
    built = [
        (record.where, faults.attempt(record.where, lambda r=record, v=value: _dialogue(r, v, movies)))  # type: ignore[misc]
        for record, value in [*decoded[0], *decoded[1]]
    ]
    of_test = {record.source for record, _ in decoded[1]}
    dialogues = records.unique(((where, d) for where, d in built if d is not None), faults)
    return Parsed(
        Catalogue(tuple(movies.values())),
        [d for d in dialogues if d.source not in of_test],
        [d for d in dialogues if d.source in of_test],
        faults.skipped,
    )


def _checked(raw: Any) -> Mapping[str, Any]:
    value = records.decode_object(raw)
    _mentions(value)
    return value


def _by_movie(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object keyed by movie; `[]`, null and missing are empty; the hub's lists of `movieId` objects are keyed."""
    value = record.get(name)
    if value is None or value == []:
        return {}
    if isinstance(value, list):
        at = f"{name}[]."
        return {records.identity(entry, "movieId", at): entry for entry in value}
    return {str(key): entry for key, entry in records.check(value, "an object", name).items()}


def _mentions(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Names by movie id; a name can be null."""
    names: dict[str, str | None] = {}
    for movie_id, name in _by_movie(record, "movieMentions").items():
        name = name.get("movieName") if isinstance(name, Mapping) else name
        names[movie_id] = None if name is None else records.check(name, "text", f"movieMentions.{movie_id}")
    return names


def _feedback(record: Mapping[str, Any], movies: Mapping[str, Item]) -> dict[str, Feedback]:
    feedback: dict[str, Feedback] = {}
    for form in ("respondentQuestions", "initiatorQuestions"):
        for movie_id, answers in _by_movie(record, form).items():
            at = f"{form}.{movie_id}"
            if not isinstance(answers, Mapping):
                raise RecordError(f"field {at!r}: found {records.describe(answers)}, expected an object")
            given = {}
            for question in ("suggested", "seen", "liked"):
                answer = answers.get(question, 2)
                answer = 2 if answer is None else answer
                if isinstance(answer, bool) or answer not in (0, 1, 2):
                    found = records.describe(answer)
                    raise RecordError(f"field '{at}.{question}': found {found}, expected 0, 1 or 2")
                given[question] = None if answer == 2 else int(answer)
            if movie_id in movies:
                feedback[movie_id] = Feedback(**given)
    return feedback


def _dialogue(record: Record, value: Mapping[str, Any], movies: Mapping[str, Item]) -> Dialogue:
    seeker = records.identity(value, "initiatorWorkerId")
    recommender = records.identity(value, "respondentWorkerId")
    if seeker == recommender:
        raise RecordError(
            f"field 'respondentWorkerId': found {recommender!r}, the initiator's; expected another person"
        )
    turns = []
    for number, message in enumerate(records.field(value, "messages", "a list")):
        at = f"messages[{number}]."
        text = records.clean(records.field(message, "text", "text", at))
        sender = records.identity(message, "senderWorkerId", at)
        if sender not in (seeker, recommender):
            raise RecordError(f"field '{at}senderWorkerId': found {sender!r}, expected {seeker!r} or {recommender!r}")
        seconds = _seconds(message, at)
        if text:
            text, items = _place_mentions(text, movies)
            turns.append(Turn(SEEKER if sender == seeker else RECOMMENDER, text, items, seconds))
    if not turns:
        raise RecordError("field 'messages': found no message with text, expected at least one")
    return Dialogue(
        dialogue_id=records.identity(value, "conversationId"),
        turns=tuple(turns),
        feedback=_feedback(value, movies),
        seeker_id=seeker,
        recommender_id=recommender,
        source=record.source,
    )


def dialogue_of(value: Mapping[str, Any], catalogue: Catalogue, source: str = "") -> Dialogue:
    """One decoded record as the loader reads it, its mentions being of the catalogue."""
    return _dialogue(Record(source, source, value), value, {item.item_id: item for item in catalogue.items})


def _seconds(message: Mapping[str, Any], at: str) -> float | None:
    offset = message.get("timeOffset")
    if offset is None:
        return None
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not 0 <= offset < 1e9:
        found = records.describe(offset)
        raise RecordError(f"field '{at}timeOffset': found {found}, expected seconds from the first message")
    return float(offset)


def _place_mentions(text: str, movies: Mapping[str, Item]) -> tuple[str, tuple[str, ...]]:
    items: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match.group(1) not in movies:
            return match.group(0)
        items.append(match.group(1))
        return MENTION

    return _MENTION.sub(place, text), tuple(items)


def movie_list(path: pathlib.Path, faults: Faults) -> Iterator[tuple[str, Item]]:
    """(id, item) of the official list; `nbMentions` is ignored: it counts test too."""
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header[:2] != ["movieId", "movieName"]:
                raise InputError(f"{path}:1: found columns {header}, expected movieId, movieName, nbMentions")
            for row in reader:

                def item(row: list[str] = row) -> Item:
                    if len(row) < 2 or not _ID.fullmatch(row[0].strip()):
                        raise RecordError(f"field 'movieId': found {row[:1]}, expected digits and a name")
                    if row[0].strip() in seen:
                        raise RecordError(f"field 'movieId': {row[0].strip()} stands twice")
                    title, year = split_year(row[1])
                    return Item(row[0].strip(), title or f"movie {row[0].strip()}", year)

                movie = faults.attempt(f"{path}:{reader.line_num}", item) if row else None
                if movie:
                    seen.add(movie.item_id)
                    yield movie.item_id, movie
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}): give ReDial's {MOVIES}") from None


def _metadata(path: pathlib.Path | None, faults: Faults) -> dict[str, Item]:
    """What is known of each movie. People are directors, then writers, then stars, each once."""
    if path is None:
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}): correct the file or remove it") from None
    if not isinstance(table, dict):
        raise InputError(
            f"{path}: found {records.describe(table)}, expected an object by movie id: correct or remove it"
        )

    def item(movie_id: str, entry: Any) -> Item:
        name = records.field(entry, "name", "text") if entry.get("name") is not None else ""
        people = [p for part in ("director", "writer", "star") for p in records.texts(entry, part)]
        plot = records.clean(records.field(entry, "plot", "text")) if entry.get("plot") is not None else ""
        genres = tuple(dict.fromkeys(g.lower() for g in records.texts(entry, "genre") if g))
        title, year = split_year(name)
        return Item(movie_id, title, year, genres, tuple(dict.fromkeys(p for p in people if p)), plot)

    known = {}
    for movie_id, entry in table.items():

        def checked(movie_id: str = movie_id, entry: Any = entry) -> Item:
            if not isinstance(entry, dict):
                raise RecordError(f"found {records.describe(entry)}, expected an object")
            return item(movie_id, entry)

        found = faults.attempt(f"{path}: movie {movie_id!r}", checked)
        if found:
            known[movie_id] = found
    return known
