"""Words and times of real talks: a log, one line a message, and the dialogues that it holds in ReDial's format.

  {"dialogue": "3f0c...", "model": "ppo", "role": "seeker", "time": 1789.25, "text": "Like @101?",
   "items": {"101": "Alien (1979)"}}

`time` is in seconds since 1970: when a person's message came, when a reply was shown. What lies between a reply and the
next message is the seeker's delay, which engagement's dwell is made of (`signals/engagement.py`). A message and its
reply are written at once when the reply is there, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.runtime.errors import InputError

FLAG = "--log"
_AT = re.compile(r"@(?=[0-9])")


def mark(turn: Turn) -> str:
    """The words with `@` and an id for each item; an `@` that somebody typed before digits gets a space behind it."""
    parts = [_AT.sub("@ ", part) for part in turn.text.split(MENTION)]
    words = parts[0]
    for item, rest in zip(turn.items, parts[1:], strict=True):
        words += f"@{item}" + (" " if rest[:1].isdigit() else "") + rest
    return words


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[int]:
    """The log, which nobody else writes meanwhile; opened anew each time, since `forget` puts another file there."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)  # what people say is theirs
        try:
            with contextlib.suppress(ImportError):  # no POSIX
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                yield file
                return
        finally:
            os.close(file)


class FeedbackWriter:
    """Appends to a log; several threads and processes may.

    Args:
      path: a `.jsonl` file, made where there is none.
      catalogue: of the run; its ids must be digits, as ReDial's are.

    Raises:
      InputError: the file cannot be written, or has another name; or the ids are others.
    """

    def __init__(self, path: pathlib.Path, catalogue: Catalogue) -> None:
        self.path, self.catalogue = pathlib.Path(path).expanduser(), catalogue
        if self.path.suffix != ".jsonl":
            raise InputError(f"{FLAG}={path}: name a .jsonl file")
        odd = next((item.item_id for item in catalogue.items if not re.fullmatch("[0-9]+", item.item_id)), None)
        if odd is not None:
            raise InputError(f"{FLAG}: talks are kept in ReDial's format, whose items are numbers; here one is {odd!r}")
        try:
            with _locked(self.path):
                pass
        except OSError as error:
            raise InputError(f"{FLAG}={path}: cannot be written ({error.strerror})") from None

    def new_dialogue(self) -> str:
        """An id for a talk."""
        return secrets.token_hex(8)

    def write(self, dialogue: str, model: str, *said: tuple[Turn, float]) -> None:
        """Messages of a talk, each with its time in seconds since 1970: all of them, or `OSError` and none."""
        data = b""
        for turn, seconds in said:
            items = {item: self.catalogue.names[item] for item in turn.distinct_items}
            line = {"dialogue": dialogue, "model": model, "role": turn.role, "time": round(seconds, 3)}
            data += (json.dumps({**line, "text": mark(turn), "items": items}) + "\n").encode()
        with _locked(self.path) as file:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # the line that a killed writer left stands alone
            try:
                while data:  # all at once, but on a disk that is full
                    data = data[os.write(file, data) :]
            except OSError as error:
                error.filename = str(self.path)
                os.ftruncate(file, size)
                raise


def forget(path: pathlib.Path, dialogue: str) -> int:
    """Takes a talk out of a log, which may be written meanwhile; returns how many lines it had.

    Raises:
      InputError: the log cannot be read or written, or there is no such talk in it.
    """
    path = pathlib.Path(path).expanduser().resolve()
    begin = json.dumps({"dialogue": dialogue})[:-1].encode()  # of a line that breaks off

    def is_of_it(line: bytes) -> bool:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return line.startswith(begin)
        return isinstance(found, dict) and found.get("dialogue") == dialogue

    try:
        path.stat()
        with _locked(path):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if not is_of_it(line)]
            if len(kept) == len(lines):
                raise InputError(f"--forget={dialogue}: {path} has no talk of this id")
            part = path.with_name(path.name + ".part")
            part.unlink(missing_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(path, part)
            part.replace(path)
    except OSError as error:
        raise InputError(f"{FLAG}={path}: cannot be changed ({error.strerror})") from None
    return len(lines) - len(kept)


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
        except (ValueError, RecursionError):
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
