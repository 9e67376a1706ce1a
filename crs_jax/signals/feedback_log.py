"""Real dwell times and clicks, for those who log them: a file beside the corpus that the reward stage reads.

`--config.signals.log=FILE` names a CSV with a header or a JSONL, one line a recommender's message:

  dialogue  id of the dialogue, as in the corpus
  turn      index of the message among the dialogue's messages that are not empty, from 0; of a run of messages by
            the recommender the sums count
  dwell     seconds the message was looked at, at least 0; may be missing or empty
  clicks    clicks on what it proposed, at least 0; may be missing or empty

  {"dialogue": "20038", "turn": 3, "dwell": 12.5, "clicks": 1}

Other fields are ignored. Where it holds any dwell times engagement's `dwell` comes from it alone; clicks are a part of
their own.
"""

from __future__ import annotations

import csv
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from crs_jax.data.dialogue import Dialogue
from crs_jax.data.records import clipped
from crs_jax.runtime.errors import InputError

FLAG = "--config.signals.log"


class Logged(NamedTuple):
    """What was logged of a message; None where nothing was."""

    dwell: float | None = None
    clicks: float | None = None


FeedbackLog = Mapping[tuple[str, int], Logged]


def read_log(path: pathlib.Path) -> dict[tuple[str, int], Logged]:
    """The log, by dialogue id and turn.

    Raises:
      InputError: the file is missing or of another kind, or a line cannot be used; names file, line and field.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix not in (".csv", ".jsonl"):
        raise InputError(f"{FLAG}={clipped(str(path), 200)}: is neither .csv nor .jsonl")
    out: dict[tuple[str, int], Logged] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for line, record in _csv(stream, path) if path.suffix == ".csv" else _jsonl(stream, path):
                key, logged = _entry(record, f"{path}, line {line}")
                if key in out:
                    raise InputError(f"{path}, line {line}: turn {key[1]} of dialogue {key[0]!r} was logged before")
                out[key] = logged
    except OSError as error:
        raise InputError(f"{FLAG}={clipped(str(path), 200)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not out:
        raise InputError(f"{path}: holds no line")
    return out


def matched(log: FeedbackLog, dialogues: Iterable[Dialogue]) -> int:
    """How many lines are of messages of these dialogues; `InputError` where a turn is none or a seeker's."""
    turns = {dialogue.dialogue_id: dialogue.turns for dialogue in dialogues}
    found = 0
    for dialogue, turn in log:
        if dialogue not in turns:
            continue
        if turn >= len(turns[dialogue]) or turns[dialogue][turn].role != "recommender":
            raise InputError(f"{FLAG}: turn {turn} of dialogue {dialogue!r} is no recommender's message")
        found += 1
    return found


def _csv(stream: Iterable[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(stream, strict=True)
    try:
        missing = [name for name in ("dialogue", "turn") if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}, line 1: has no column {missing[0]}")
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise InputError(f"{path}, line {max(reader.line_num, 1)}: {error}") from None


def _jsonl(stream: Iterable[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: is no JSON ({error})") from None


def _entry(record: Any, where: str) -> tuple[tuple[str, int], Logged]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: is no object")
    dialogue: Any = record.get("dialogue")
    turn: Any = record.get("turn")
    if isinstance(dialogue, bool) or not isinstance(dialogue, (str, int)) or dialogue == "":
        raise InputError(f"{where}: dialogue is {dialogue!r}, expected an id")
    try:
        index = int(turn) if not isinstance(turn, (bool, float)) else -1
    except (TypeError, ValueError):
        index = -1
    if index < 0:
        raise InputError(f"{where}: turn is {turn!r}, expected an index from 0")
    return (str(dialogue), index), Logged(*(_number(record.get(name), f"{where}: {name}") for name in Logged._fields))


def _number(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (number >= 0 and math.isfinite(number)):
        raise InputError(f"{where} is {value!r}, expected a number of at least 0 or nothing")
    return number
