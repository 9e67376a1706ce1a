"""Finds the items a message names where a corpus gives their titles beside the text, not inside it."""

from __future__ import annotations

import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from crs_jax.data.dialogue import MENTION

_TOKEN = re.compile(r"\w+(?:['’]\w+)*|&")
_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ["zero", "one", "two ii", "three iii", "four iv", "five", "six vi", "seven vii", "eight viii", "nine ix", "ten"]
    )
    for word in words.split()
}
ARTICLES = ("the", "a", "an")
SHORT = 3  # letters: titles like 'It' or 'Up' are words first
CLOSE = 0.87  # similarity of a misspelt title, by difflib's ratio of the joined words

Span = tuple[int, int]


class Token(NamedTuple):
    """A word without case, accents, apostrophes and kind of numeral, and where in the text it stands."""

    word: str
    start: int
    end: int


def normal_tokens(text: str) -> list[Token]:
    """The words of a text, punctuation left out."""
    return [Token(_normal(m.group()), m.start(), m.end()) for m in _TOKEN.finditer(text)]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An item that a message may name.

    Attributes:
      item_id: its id.
      surfaces: what it may be called there.
      annotated: the corpus says that this very message names it, so case, punctuation and spelling may differ.
    """

    item_id: str
    surfaces: tuple[str, ...]
    annotated: bool = True


def place(text: str, candidates: Sequence[Candidate]) -> tuple[str, tuple[str, ...]]:
    """The text with `MENTION` for every title found, and the item ids in order; longer titles win over shorter.

    An annotated title is looked for letter by letter, then without case, punctuation, leading article and kind of
    numeral, then misspelt (`CLOSE`); others letter by letter only. A title that is not found is not a mention.
    """
    found: list[tuple[int, int, int, str]] = []
    for order, candidate in enumerate(candidates):
        for start, end in _spans(text, candidate):
            found.append((start - end, order, start, candidate.item_id))
    taken: list[tuple[int, int, str]] = []
    for negative, _, start, item_id in sorted(found):
        end = start - negative
        if all(end <= a or b <= start for a, b, _ in taken):
            taken.append((start, end, item_id))
    parts, at = [], 0
    for start, end, _ in sorted(taken):
        parts += [text[at:start], MENTION]
        at = end
    return "".join(parts) + text[at:], tuple(item_id for _, _, item_id in sorted(taken))


def _spans(text: str, candidate: Candidate) -> list[Span]:
    surfaces = [s for s in dict.fromkeys(candidate.surfaces) if re.search(r"\w", s)]
    spans = [span for surface in surfaces for span in _exact(text, surface)]
    if spans or not candidate.annotated:
        return spans
    tokens = normal_tokens(text)
    titles = [[token.word for token in normal_tokens(s)] for s in surfaces]
    titles += [t[1:] for t in titles if len(t) > 1 and t[0] in ARTICLES and len("".join(t[1:])) > SHORT]
    spans = [_widen(text, span) for title in titles for span in _loose(text, tokens, title)]
    if spans:
        return spans
    best = max((_close(tokens, title) for title in titles), default=None)
    return [_widen(text, best[1])] if best and best[0] >= CLOSE else []


def _exact(text: str, surface: str) -> list[Span]:
    before = r"(?<!\w)" if surface[0].isalnum() else ""
    after = r"(?!\w)" if surface[-1].isalnum() else ""
    if len(surface) <= SHORT:
        after += r"(?!['’]\w)"
    return [m.span() for m in re.finditer(before + re.escape(surface) + after, text)]


def _normal(token: str) -> str:
    if token == "&":
        return "and"
    letters = unicodedata.normalize("NFKD", token.replace("'", "").replace("’", "")).casefold()
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    return _NUMBERS.get(letters, letters)


def _loose(text: str, tokens: list[Token], title: list[str]) -> list[Span]:
    """Runs of tokens that equal the title's; a short one must be capitalised in the text."""
    words, n = [t[0] for t in tokens], len(title)
    spans = []
    for i in range(len(tokens) - n + 1):
        if words[i : i + n] == title:
            start, end = tokens[i][1], tokens[i + n - 1][2]
            if len("".join(title)) > SHORT or any(c.isupper() for c in text[start:end]):
                spans.append((start, end))
    return spans


def _close(tokens: list[Token], title: list[str]) -> tuple[float, Span]:
    """The run of tokens most like the title when both are joined; digits must agree. (0, ...) for short titles."""
    wanted = "".join(title)
    best = (0.0, (0, 0))
    if len(wanted) < 6:
        return best
    digits = re.sub(r"\D", "", wanted)
    for n in range(max(1, len(title) - 1), len(title) + 2):
        for i in range(len(tokens) - n + 1):
            window = "".join(t[0] for t in tokens[i : i + n])
            if abs(len(window) - len(wanted)) > 3 or re.sub(r"\D", "", window) != digits:
                continue
            ratio = difflib.SequenceMatcher(None, wanted, window, autojunk=False).ratio()
            if ratio > best[0]:
                best = (ratio, (tokens[i][1], tokens[i + n - 1][2]))
    return best


def _widen(text: str, span: Span) -> Span:
    """Takes in the bracket that closes one opened inside the span, as in 'joker (2019)'."""
    start, end = span
    inside = text[start:end]
    return (start, end + 1) if inside.count("(") > inside.count(")") and text[end : end + 1] == ")" else span
