"""The talk in a terminal, or over pipes: a line is a message."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from crs_jax.runtime import arguments
from crs_jax.tools.api.proposals import Recommendation
from crs_jax.tools.chat.conversation import Answer, Conversation, Talker, signals, signed

HELP = """/reset            a new talk
/temperature 0.5  of the replies from now on, 1e-06 to 1,000,000; 0 takes the likeliest
/top 10           items shown beside a reply
/quit             ends; so does the end of the input"""
NARROW = 64  # columns below which an item takes two lines
GAP = 4
T = TypeVar("T", int, float)
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text that cannot steer a terminal: no escapes, no changes of direction, on one line."""
    return _UNSAFE.sub("\ufffd", " ".join(text.split()))


def talk(talker: Talker, temperature: float) -> None:
    """Reads messages from stdin until it ends."""
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  the input line can be edited
        print("/help lists the commands")
    conversation = Conversation(agreed=True)
    while True:
        try:
            line = input("you> ")
        except EOFError:
            print()
            return
        if not asks:
            print(plain(line), flush=True)
        if line.startswith("/"):
            name, _, value = line[1:].strip().partition(" ")
            if name == "quit":
                return
            if name == "reset":
                conversation = Conversation(agreed=True)
            elif name == "temperature" and (given := _number(value, float, arguments.temperature)) is not None:
                temperature = given
            elif name == "top" and (given := _number(value, int, arguments.whole, 1)) is not None:
                talker.top = given
            else:
                print(HELP)
            continue
        if not talker.hear(conversation, line):
            continue
        found = dict(talker.answer(conversation, temperature))
        for unlinked in next(iter(found.values())).reply.unlinked:
            print("\n".join(textwrap.wrap(plain(str(unlinked)), columns())))
        print("\n".join(beside(found, columns())), flush=True)


def _number(text: str, kind: Callable[[str], T], check: Callable[..., T], *limits: int) -> T | None:
    """What the text says where `check`, of `arguments`, takes it."""
    try:
        return check("value", kind(text), *limits)
    except ValueError:  # InputError is one
        return None


def columns() -> int:
    """Width to write in."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def beside(answers: dict[str, Answer], width: int) -> list[str]:
    """The answers' blocks, side by side where they fit."""
    if len(answers) == 1 or width < 72:
        return [line for name, answer in answers.items() for line in (*block(name, answer, width), "")]
    each = (width - GAP * (len(answers) - 1)) // len(answers)
    blocks = [list(block(name, answer, each)) for name, answer in answers.items()]
    lines = []
    for row in range(max(map(len, blocks))):
        cells = [(lines_of[row] if row < len(lines_of) else "").ljust(each) for lines_of in blocks]
        lines.append((" " * GAP).join(cells).rstrip())
    return [*lines, ""]


def block(name: str, answer: Answer, width: int) -> Iterator[str]:
    """One answer: the words, what the reward model foretells of them, the likeliest items."""
    yield from textwrap.wrap(f"{name}> {plain(answer.reply.text)}", width, subsequent_indent=" " * (len(name) + 2))
    yield ""
    if answer.score is None:
        yield from textwrap.wrap("no predictions: there is no reward model here", width)
    else:
        shown = [f"{signal} {signed(value)}" for signal, value in signals(answer.score).items()]
        lines = textwrap.wrap("   ".join(text.replace(" ", "\xa0") for text in shown), width)
        yield from (line.replace("\xa0", " ") for line in lines)
    yield ""
    yield from items(answer.reply.top, width)
    yield f"{answer.seconds:.2f} s"


def items(top: Sequence[Recommendation], width: int) -> Iterator[str]:
    """The table of items, with titles as wide as there is room."""
    if width < NARROW:
        for item in top:
            title, *more = textwrap.wrap(plain(item.name), width - 9)
            yield f"{item.probability:6.1%}  {title}"
            for line in (*more, *textwrap.wrap(plain(", ".join(item.genres)), width - 9)):
                yield f"{'':6}  {line}"
        return
    room = min(max([len("not named so far"), *(len(plain(item.title)) for item in top)]), width - 46)
    yield f"{'not named so far':{room}}  year  {'genres':28}  chance"
    for item in top:
        title, genres = (
            textwrap.shorten(plain(text), size, placeholder="…")
            for text, size in ((item.title, room), (", ".join(item.genres), 28))
        )
        yield f"{title:{room}}  {item.year or '':4}  {genres:28}  {item.probability:6.1%}"
