"""Spaces around item mentions, so that text and tokens go back and forth without loss.

An utterance is laid out as pieces: runs of words, each word with its space in front, and items, which bring their own
space. So ' movie' is one and the same token at the start of an utterance, after a word and after an item, and an
item's token stands for ' Title'. Where that space does not belong (after an opening bracket or quote) is a rule of the
text before the item, applied alike when reading and when writing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_OPENING = frozenset("([{<“‘«¿¡")
_QUOTES = frozenset("\"'`*_~")  # opening where a space stands before them
_JOINING = frozenset("/-–—")  # as in 'Alien/Aliens', where no space stands before them
_SPACE_BEFORE_STOP = re.compile(r"^ +(?=[.,!?])")


def glued(before: str) -> bool:
    """Whether an item follows `before` without a space; only the last two characters matter."""
    last, previous = before[-1:], before[-2:-1]
    if last in _QUOTES:
        return not previous or previous.isspace() or previous in _OPENING
    if last in _JOINING:
        return bool(previous) and not previous.isspace()
    return not last or last.isspace() or last in _OPENING


def lay_out(segments: Sequence[str], mentions: Sequence[int | str]) -> list[int | str]:
    """Words and items of one utterance, in order.

    Runs of whitespace become one space; a space between an item and the full stop, comma, question or exclamation
    mark after it goes; a word that touches the item before it gets its space.

    Args:
      segments: the text between the mentions, one more than there are mentions.
      mentions: an int (an item's row) stays an item; a str (a title) is written out as words.

    Returns:
      Non-empty strings, which start with a space unless they open with punctuation after an item, and ints.
    """
    out: list[int | str] = []
    words, shown = "", ""  # the run of words being built; the end of the utterance as it will be shown
    for number, segment in enumerate(segments):
        text = " ".join(segment.split())
        if number and segment[:1].isspace() and text:
            text = _SPACE_BEFORE_STOP.sub("", " " + text)
        elif text and (not number or text[0].isalnum()):
            text = " " + text
        words += text
        shown = (shown + text)[-2:]
        if number == len(mentions):
            break
        mention = mentions[number]
        if isinstance(mention, int):
            out += [words, mention] if words else [mention]
            words, shown = "", "x"
        else:
            title = " ".join(mention.split())
            words += title if words and glued(shown) else " " + title
            shown = words[-2:]
    return [*out, words] if words else out


def join(pieces: Sequence[tuple[bool, str]]) -> str:
    """The text a person reads, from (is it an item, its words or title) in order: the inverse of `lay_out`."""
    text, after_item = "", False
    for is_item, piece in pieces:
        if is_item:
            text += piece if glued(text) else " " + piece
        else:
            text += " " + piece if after_item and piece[:1].isalnum() else piece
        after_item = is_item
    return text.strip()
