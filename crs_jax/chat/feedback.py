"""Words and times of real talks: a log, one line a message, and the dialogues that it holds in ReDial's format.

  {"dialogue": "3f0c...", "model": "ppo", "role": "seeker", "time": 1789.25, "text": "Like @101?",
   "items": {"101": "Alien (1979)"}}

`time` is in seconds since 1970: when a person's message came, when a reply was shown. What lies between a reply and the
next message is the seeker's delay, which engagement's dwell is made of (`signals/engagement.py`). A line is written
whole and at once, so that a server that is killed loses what was not yet said.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import secrets
import threading
from typing import Any

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.errors import InputError

FLAG = "--log"
_AT = re.compile(r"@(?=[0-9])")


def mark(turn: Turn) -> str:
    """The words with `@` and an id for each item; an `@` that somebody typed before digits gets a space behind it."""
    parts = [_AT.sub("@ ", part) for part in turn.text.split(MENTION)]
    words = parts[0]
    for item, rest in zip(turn.items, parts[1:], strict=True):
        words += f"@{item}" + (" " if rest[:1].isdigit() else "") + rest
    return words


class FeedbackWriter:
    """Appends to a log; several threads and processes may.

    Args:
      path: a `.jsonl` file, made where there is none.
      catalogue: of the run; its ids must be digits, as ReDial's are.

    Raises:
      InputError: the file cannot be written, or has another name; or the ids are others.
    """

    def __init__(self, path: pathlib.Path, catalogue: Catalogue) -> None:
        self.path = pathlib.Path(path).expanduser()
        if self.path.suffix != ".jsonl":
            raise InputError(f"{FLAG}={path}: name a .jsonl file")
        odd = next((item.item_id for item in catalogue.items if not re.fullmatch("[0-9]+", item.item_id)), None)
        if odd is not None:
            raise InputError(f"{FLAG}: talks are kept in ReDial's format, whose items are numbers; here one is {odd!r}")
        self._lock = threading.Lock()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)  # what people say is theirs
        except OSError as error:
            raise InputError(f"{FLAG}={path}: cannot be written ({error.strerror})") from None
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # the line that a killed writer left stands alone

    def new_dialogue(self) -> str:
        """An id for a talk."""
        return secrets.token_hex(8)

    def write(self, dialogue: str, model: str, turn: Turn, catalogue: Catalogue, seconds: float) -> None:
        """One message; `seconds` since 1970."""
        items = {item: catalogue.names[item] for item in turn.distinct_items}
        line = {"dialogue": dialogue, "model": model, "role": turn.role, "time": round(seconds, 3)}
        data = (json.dumps({**line, "text": mark(turn), "items": items}) + "\n").encode()
        with self._lock:
            while data:  # all at once, but on a disk that is full
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """No more is written."""
        os.close(self._file)


def read_feedback(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The talks of a log as ReDial records, in the order in which they began, and numbers of lines that break off.

    Person and recommender of each talk have names of their own, so that a split by persons takes talks one by one.

    Raises:
      InputError: the file cannot be read, or a whole line is none that `FeedbackWriter` writes; names line and field.
    """
    path = pathlib.Path(path).expanduser()
    talks: dict[str, dict[str, Any]] = {}
    started: dict[str, float] = {}
    broken: list[int] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{FLAG}={path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            broken.append(number)
            continue
        said = _checked(found, f"{path}, line {number}")
        name = said["dialogue"]
        start = started.setdefault(name, said["time"])
        persons = {SEEKER: f"{SEEKER}-{name}", RECOMMENDER: f"{RECOMMENDER}-{name}"}
        talk = talks.setdefault(
            name,
            {
                "conversationId": name, "initiatorWorkerId": persons[SEEKER],
                "respondentWorkerId": persons[RECOMMENDER], "messages": [], "movieMentions": {},
                "initiatorQuestions": {}, "respondentQuestions": {},
            },
        )  # fmt: skip
        offset = round(max(said["time"] - start, 0.0), 3)
        talk["messages"].append({"senderWorkerId": persons[said["role"]], "text": said["text"], "timeOffset": offset})
        talk["movieMentions"] |= said["items"]
    return list(talks.values()), broken


def _checked(found: Any, where: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {"dialogue": str, "role": str, "time": int | float, "text": str, "items": dict}
    if not isinstance(found, dict):
        raise InputError(f"{where}: is no object")
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise InputError(f"{where}: {name} is {found.get(name)!r:.80}; expected what {FLAG} writes")
    if found["role"] not in (SEEKER, RECOMMENDER):
        raise InputError(f"{where}: role is {found['role']!r:.80}, expected {SEEKER} or {RECOMMENDER}")
    return found
