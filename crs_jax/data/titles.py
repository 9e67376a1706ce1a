"""Titles that people type, linked to the catalogue: free text in, a turn with its items out.

No annotation says what such a message names, so only what is clear counts. A title is looked for as the loaders look
for annotated ones (`mentions.py`): without case, accents, punctuation, kind of numeral and leading article; the longest
wins. With the year behind it, `Alien (1979)` or `alien 1979`, it is that item; with another year in brackets, or more
of a title before one, `Dune (2021)` or `Toy Story 3 (2010)`, it is not (a year may be one off). Without a year, it must
be the title of one item alone, and no way of talking: a title that stands in small letters in the training dialogues,
where it is no mention ('get out', 'big'), has to be capitalised, and a single word of that kind, or of three letters,
not by the beginning of a sentence alone; a number has to be the whole message or in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from crs_jax.data import records
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, Dialogue, Turn
from crs_jax.data.mentions import ARTICLES, SHORT, Token, normal_tokens

PHRASE = 3  # longest title, in words, that can be a way of talking
TIMES = 2  # how often it is said
_YEAR = re.compile(r"\s*,?\s*[(\[]?((?:18|19|20)[0-9]{2})\b[)\]]?")
IN_BRACKETS = re.compile(r"[\s!?.…,'’\"”*]*[(\[]((?:18|19|20)[0-9]{2})[)\]]")
_SMALL_WORD = r"(?:of|the|in|to|on|at|for|from|by|a|an|vs?\.?)\s+"
_MORE = re.compile(
    rf"[\s:–-]+(?:{_SMALL_WORD})*[A-Z0-9][\w'’]*(?:[\s:–-]+(?:{_SMALL_WORD}|(?:and|with|&)\s+)*[A-Z0-9][\w'’]*)*"
)
STARTS = re.compile(r"(?:^|[.!?:\n])[\s\"'“”‘’(]*$")
_SMALL = frozenset({*ARTICLES, "of", "and", "in", "to", "on", "at", "for", "with", "or", "from", "by", "is"})

Words = tuple[str, ...]


class Link(NamedTuple):
    """What a part of a text names: an item, or by a title that several share, one of these."""

    start: int
    end: int
    rows: tuple[int, ...]


class Titles:
    """The titles of a catalogue.

    Args:
      catalogue: what can be named.
      spoken: the training dialogues, whose words tell titles from ways of talking.
      phrases: titles that are ways of talking besides, as another one's `phrases` has them.
    """

    def __init__(self, catalogue: Catalogue, spoken: Iterable[Dialogue] = (), phrases: Iterable[Words] = ()) -> None:
        self.catalogue = catalogue
        self._full: dict[Words, list[int]] = {}
        self._bare: dict[Words, list[int]] = {}
        for row, item in enumerate(catalogue.items):
            words = _words(item.title)
            if not words:
                continue
            self._full.setdefault(words, []).append(row)
            if words[0] in ARTICLES and len("".join(words[1:])) > SHORT:
                self._bare.setdefault(words[1:], []).append(row)
        self._longest = max(map(len, self._full), default=0)
        self.phrases = frozenset(self._ways_of_talking(spoken).union(map(tuple, phrases)))

    def turn(self, role: str, text: str, seconds: float | None = None) -> Turn:
        """The turn that a typed text is; `@123`, `<|end|>` and the like in it are words as any others."""
        text = records.clean(text)
        parts, at, items = [], 0, []
        for found in self.links(text):
            if len(found.rows) == 1:
                parts += [text[at : found.start], MENTION]
                at = found.end
                items.append(self.catalogue.items[found.rows[0]].item_id)
        return Turn(role, "".join(parts) + text[at:], tuple(items), seconds)

    def called(self, words: Words) -> list[Item]:
        """The items of a title."""
        return [self.catalogue.items[row] for row in self._full.get(words, ())]

    def links(self, text: str) -> list[Link]:
        """What the text names, in order."""
        tokens, found = normal_tokens(text), list[tuple[int, int, Link]]()
        for size in range(1, min(self._longest, len(tokens)) + 1):
            for at in range(len(tokens) - size + 1):
                link = self._match(text, tokens[at : at + size])
                if link is not None:
                    found.append((-size, link.start - link.end, link))
        taken: list[Link] = []
        for _, _, link in sorted(found):
            if all(link.end <= other.start or other.end <= link.start for other in taken):
                taken.append(link)
        return sorted(taken)

    def _match(self, text: str, tokens: list[Token]) -> Link | None:
        words = tuple(token.word for token in tokens)
        rows = [*self._full.get(words, ()), *self._bare.get(words, ())]
        if not rows:
            return None
        start, end = tokens[0].start, tokens[-1].end
        if text[start - 1 : start] in ("(", "[") and IN_BRACKETS.match(text, start - 1):  # 2012, a year and a film
            return None
        bracketed = IN_BRACKETS.match(text, end)
        if year := bracketed or _YEAR.match(text, end):
            for off in (0, 1, -1) if bracketed else (0,):
                of_year = [row for row in rows if self.catalogue.items[row].year == int(year[1]) + off]
                if of_year:
                    return Link(start, year.end(), (of_year[0],))
        if words not in self._full and words in self.phrases:  # 'Comedy' is hardly 'The Comedy'
            return None
        rows = self._full.get(words) or rows
        years = {self.catalogue.items[row].year for row in rows}
        if not self._is_meant(text, words, start, end):
            return None
        more = _MORE.match(text, end)
        if (bracketed and None not in years) or (more and IN_BRACKETS.match(text, more.end())):
            return None
        if len(years) == 1 or (len(years) == 2 and None in years):
            rows = [next((row for row in rows if self.catalogue.items[row].year), rows[0])]
        return Link(start, bracketed.end() if bracketed else end, tuple(rows))

    def _is_meant(self, text: str, words: Words, start: int, end: int) -> bool:
        """Whether a title without a year is one: no way of talking, or written as a title."""
        short = len("".join(words)) <= SHORT
        if not short and words not in self.phrases:
            return True
        quoted = text[start - 1 : start] in ('"', "“", "*") and text[end : end + 1] in ('"', "”", "*")
        alone = words not in self.phrases and not re.search(r"\w", text[:start] + text[end:])  # 'Yes' is an answer
        written = [word for word in re.findall(r"\w[\w'’]*", text[start:end]) if word.lower() not in _SMALL]
        capital = bool(written) and all(word[0].isupper() or word[0].isdigit() for word in written)
        if len(words) > 1:
            return quoted or capital
        number = words[0].isdigit()
        return quoted or (capital and (alone or not (number or STARTS.search(text[:start]))))

    def _ways_of_talking(self, spoken: Iterable[Dialogue]) -> set[Words]:
        short = {words for words in (*self._full, *self._bare) if len(words) <= PHRASE}
        count: dict[Words, int] = {}
        for dialogue in spoken:
            for turn in dialogue.turns:
                for part in turn.text.split(MENTION):
                    tokens = normal_tokens(part)
                    for size in range(1, PHRASE + 1):
                        for at in range(len(tokens) - size + 1):
                            words = tuple(token.word for token in tokens[at : at + size])
                            if words in short and part[tokens[at].start : tokens[at + size - 1].end].islower():
                                count[words] = count.get(words, 0) + 1
        return {words for words, times in count.items() if times >= TIMES}


def _words(text: str) -> Words:
    return tuple(token.word for token in normal_tokens(text))
