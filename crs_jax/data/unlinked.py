"""Titles that a person types and the catalogue does not have, or has several times.

`Titles` links what is clear. Of the rest this tells what still looks like a title, so that the recommender can say that
it does not know it: words before a year in brackets, words in quotes, and two capitalised words or more behind a verb
such as 'saw' or 'loved', or behind another title and 'and' or 'or'. Behind 'love' and 'like' people name actors too: so
there nothing counts that begins with a first name, and where the catalogue knows no people nothing at all. People,
genres and parts of known titles ('Star Wars') are never taken for titles.

Measured on ReDial's seekers (`pytest -s tests/data/test_unlinked.py -k redial -m data`). All of their titles are known,
so that each title found is a false alarm: in .09 to .14 % of 4,364 messages with metadata and in .11 % without, some of
them misspelt titles. Of 173 mentions of titles that were taken out of the catalogue, .90 are noticed where they are
written as ReDial has them, with the year; by their capitalised words alone .20 with metadata and .08 without; in small
letters none.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from crs_jax.data import records
from crs_jax.data.mentions import ARTICLES, SHORT, Token, normal_tokens
from crs_jax.data.titles import IN_BRACKETS, STARTS, Titles, Words


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


SURE = _set("see seen saw seeing watch watched watching called titled rewatch rewatched")
LIKELY = _set("like liked love loved loves enjoy enjoyed enjoys hate hated recommend suggest try tried")
JOINING = _set("and or")  # two titles
NEVER_FIRST = SURE | LIKELY | JOINING | _set("are is about out to than of was")
BETWEEN = _set("the a an movie film book movies films books also both")
INSIDE = _set("the a an of and in to on at for with from by vs v")
OUTSIDE = _set(
    "i im ive id have has had did do you we he she it is was are but so yes no oh hi hello hey ok okay maybe also well "
    "thanks thank please how what who when where why that this not never just really even then if they my its"
)
GENRES = _set(
    "action adventure animated animation anime biography comedy crime documentary drama family fantasy fiction history "
    "horror music musical mystery noir rom romance romantic scifi sport superhero suspense thriller war western"
)
LONGEST = 10  # words of a title
SHOWN = 3  # items that it may mean
_KINDS = r"\s+(?:movies|films|books|series|ones|franchise|trilogy)\b"
_ALL, _MANY = re.compile(_KINDS, re.IGNORECASE), re.compile(rf"{_KINDS}$", re.IGNORECASE)
_QUOTES = re.compile(r'["“]([^"“”\n]{2,80})["”]')
_JOINED = re.compile(r"[\s:'’&+/·–-]*|(?<=Dr|Mr|Ms|St|vs)\.\s|(?<=Mrs|Vol)\.\s")


class Unlinked(NamedTuple):
    """A title that is linked to no item.

    Attributes:
      title: as it was typed.
      known: names of items that it may mean; empty where nothing of that name is known.
      year: whether a year would tell these apart.
    """

    title: str
    known: tuple[str, ...] = ()
    year: bool = False

    def __str__(self) -> str:
        known = " or ".join(self.known)
        if self.year:
            return f'"{self.title}" may be {known}: add the year.'
        return f'I do not know "{self.title}"' + (f"; I know {known}." if known else ".")


class UnlinkedTitles:
    """Finds them.

    Args:
      titles: of the catalogue.
    """

    def __init__(self, titles: Titles) -> None:
        self._titles, items = titles, titles.catalogue.items
        self._people = {words for item in items for person in item.people if (words := _words(person))}
        first = collections.Counter(words[0] for words in self._people if len(words) > 1)
        self._first_names = {name for name, times in first.items() if times > 1 and name not in ARTICLES}
        self._genres = GENRES | {word for item in items for genre in item.genres for word in _words(genre)}
        self._verbs = SURE | LIKELY if self._people else SURE
        self._parts = {
            words[a:b]
            for words in (_words(item.title) for item in items)
            for a in range(len(words))
            for b in range(a + 2, len(words) + 1)
        }

    def find(self, text: str) -> tuple[Unlinked, ...]:
        """What the text names so, in order, each once."""
        text = records.clean(text)
        items = self._titles.catalogue.items
        taken: list[tuple[int, int, Unlinked | None]] = []
        for link in self._titles.links(text):
            known = tuple(dict.fromkeys(items[row].name for row in link.rows if items[row].year))
            said = text[link.start : link.end]
            asked = len(known) > 1 and len(said) > SHORT and not _ALL.match(text, link.end)
            taken.append((link.start, link.end, Unlinked(said, known[:SHOWN], year=True) if asked else None))
        tokens = normal_tokens(text)
        linked = [end for _, end, _ in taken]
        marked = [*self._dated(text, tokens, linked), *_quoted(text, tokens)]
        ends = [*linked, *(end for _, end in marked)]
        for start, end in (*marked, *self._named(text, tokens, ends)):
            if all(end <= a or b <= start for a, b, _ in taken):
                taken.append((start, end, self._unknown(text[start:end])))
        return tuple(dict.fromkeys(unlinked for _, _, unlinked in sorted(taken, key=lambda t: t[0]) if unlinked))

    def _unknown(self, title: str) -> Unlinked:
        dated = re.search(r"\W*[(\[](\d{4})[)\]]$", title)
        words = _words(title[: dated.start()] if dated else title)
        known = tuple(item.name for item in self._titles.called(words)) if dated else ()
        return Unlinked(" ".join(title.split()), known[:SHOWN])

    def _dated(self, text: str, tokens: list[Token], linked: list[int]) -> Iterator[tuple[int, int]]:
        """Before a year in brackets: capitalised words, or in small letters all back to a verb."""
        ends = {token.end: number for number, token in enumerate(tokens)}
        for token in tokens:
            year = IN_BRACKETS.match(text, token.end)
            if year is None:
                continue
            last = ends[token.end]
            first, begin = last, max([end for end in linked if end <= token.start], default=0)
            capital = _capital(text, token)
            while first > 0 and last - first < LONGEST and tokens[first - 1].start >= begin:
                before = tokens[first - 1]
                joined = _JOINED.fullmatch(text[before.end : tokens[first].start])
                if not joined or (
                    before.word in (SURE | LIKELY | OUTSIDE) and not (capital and _capital(text, before))
                ):
                    break
                if capital and not _capital(text, before) and before.word not in INSIDE:
                    break
                first -= 1
            verb = first > 0 and tokens[first - 1].word in SURE | LIKELY
            first = _stripped(text, tokens, first, last)
            if first <= last and (capital or verb):
                yield tokens[first].start, year.end()

    def _named(self, text: str, tokens: list[Token], ends: list[int]) -> Iterator[tuple[int, int]]:
        """Capitalised words behind a verb, or behind a title (`ends`: where these end) and 'and'."""
        if _shouted(text, tokens):
            return
        ends = list(ends)
        for number, token in enumerate(tokens):
            sure = token.word in SURE
            joins = token.word in JOINING and any(not text[end : token.start].strip(" ,'’\"”") for end in ends)
            if not joins and token.word not in self._verbs:
                continue
            first, last = number + 1, number
            while first < len(tokens) and tokens[first].word in BETWEEN and not _capital(text, tokens[first]):
                first += 1
            for n in range(first, min(first + LONGEST, len(tokens))):
                gap = text[tokens[n - 1].end : tokens[n].start]
                if not (_JOINED.fullmatch(gap) if n > first else gap.strip(' :"“') == ""):
                    break
                word = tokens[n].word
                if _capital(text, tokens[n]) and (word not in OUTSIDE or (n == first and word[0] != "i")):
                    last = n
                elif word not in INSIDE:
                    break
            part = tokens[_stripped(text, tokens, first, last) : last + 1]
            capitals = [_capital(text, token) for token in part]
            if sum(capitals) > 1 and not self._is_known(text, part, sure):
                ends.append(part[-1].end)
                yield part[0].start, part[-1].end

    def _is_known(self, text: str, part: list[Token], sure: bool) -> bool:
        """Whether the words are people, a kind of titles or a part of a known one."""
        if any(_singular(token.word) in self._genres or token.word in self._genres for token in part):
            return True
        if _MANY.search(text, part[0].start, part[-1].end) or _ALL.match(text, part[-1].end):
            return True
        words = tuple(re.sub(r"['’]s$", "", text[token.start : token.end]) for token in part)
        said = tuple(_words(word)[0] for word in words)
        if said in self._parts:
            return True
        people = [tuple(names.split()) for names in re.split(r"\b(?:and|or)\b", " ".join(said)) if names.strip()]
        return all(person in self._people or (not sure and person[0] in self._first_names) for person in people)


def _quoted(text: str, tokens: list[Token]) -> Iterator[tuple[int, int]]:
    """In quotes, written as a title: a single word behind a verb alone."""
    for quote in _QUOTES.finditer(text):
        inside = [n for n, token in enumerate(tokens) if quote.start(1) <= token.start and token.end <= quote.end(1)]
        if not 1 <= len(inside) <= LONGEST or not _titled(text, [tokens[n] for n in inside]):
            continue
        verb = any(tokens[n].word in SURE | LIKELY for n in range(max(inside[0] - 3, 0), inside[0]))
        if len(inside) > 1 or verb:
            yield quote.start(1), quote.end(1)


def _singular(word: str) -> str:
    return re.sub("ies$", "y", word).removesuffix("s")


def _stripped(text: str, tokens: list[Token], first: int, last: int) -> int:
    """The first of them that can begin a title."""
    while first < last:
        word, capital = tokens[first].word, _capital(text, tokens[first])
        opens = STARTS.search(text[: tokens[first].start]) is not None
        if not ((word in NEVER_FIRST | OUTSIDE and (opens or not capital)) or (word in INSIDE and not capital)):
            break
        first += 1
    return first


def _titled(text: str, part: list[Token]) -> bool:
    return all(_capital(text, token) or token.word in INSIDE for token in part) and _capital(text, part[0])


def _capital(text: str, token: Token) -> bool:
    return text[token.start].isupper() or text[token.start].isdigit()


def _shouted(text: str, tokens: list[Token]) -> bool:
    """Whether capitals say nothing here."""
    return len(tokens) > 4 and sum(_capital(text, token) for token in tokens) > 0.7 * len(tokens)


def _words(text: str) -> Words:
    return tuple(token.word for token in normal_tokens(text))
