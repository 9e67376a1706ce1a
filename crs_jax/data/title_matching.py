"""Which of IMDb's titles a catalogue's item is: by title and year, with rules for those that share both."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Iterable, Sequence

from crs_jax.data.catalogue import Item
from crs_jax.data.mentions import ARTICLES, normal_tokens

KINDS = ("movie", "tvMovie", "video", "tvMiniSeries", "tvSeries", "tvSpecial", "short", "tvShort")
"""IMDb's types that an item can be, the likeliest first; episodes, pilots and games are none."""
MINOR = ("tvSpecial", "short", "tvShort")
"""Of these one of the same year is not preferred to a movie one year off."""
_BEHIND = re.compile(rf",\s*(?:{'|'.join(ARTICLES)})\s*$", re.IGNORECASE)
EXACT, NEAR, BY_TITLE, AMBIGUOUS, UNMATCHED = "exact year", "one year off", "no year given", "ambiguous", "unmatched"


@dataclasses.dataclass(eq=False)
class Title:
    """A row of title.basics.

    Attributes:
      number: of `tconst`, which `imdb_id` writes.
      principals: rows of title.principals, counted later.
    """

    imdb_id: str
    number: int
    kind: str
    primary: str
    original: str
    year: int
    genres: tuple[str, ...]
    principals: int = 0


def keys(title: str) -> tuple[str, str]:
    """What titles are compared by, with and without the leading article ('Matrix, The' has one too).

    Without case, accents, punctuation, spaces, kind of numeral and `%3F`, which ReDial has for a question mark.
    """
    title = urllib.parse.unquote(title)
    words = [token.word for token in normal_tokens(title)]
    if not words:  # '$' and '...' are films
        return (title.casefold().strip(),) * 2
    if len(words) > 1 and _BEHIND.search(title):
        words = [words[-1], *words[:-1]]
    without = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    return "".join(words), "".join(without)


class Wanted:
    """Items by title, so that a row of the table is looked up once."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = tuple(items)
        self._rows: dict[str, list[int]] = {}
        self.found: list[list[Title]] = [[] for _ in self.items]
        for row, item in enumerate(self.items):
            self._rows.setdefault(keys(item.title)[1], []).append(row)

    def offer(self, title: Title) -> None:
        """Keeps a title for the items that it may be."""
        names = {keys(name)[1] for name in {title.primary, title.original}}
        for row in sorted({row for name in names for row in self._rows.get(name, ())}):
            year = self.items[row].year
            if year is None or abs(year - title.year) <= 1:
                self.found[row].append(title)

    def shortlists(self) -> list[tuple[str, list[Title]]]:
        """How each item was found, and the titles that it may be; several are told apart by `choose`.

        The year decides (but see `MINOR`), then the type (`KINDS`), then how the title fits. A year off, or with no
        year to go by, one title alone must be best.
        """
        out = []
        for item, found in zip(self.items, self.found, strict=True):
            same = [title for title in found if title.year == item.year]
            if all(title.kind in MINOR for title in same):
                movies = [title for title in found if title.kind == "movie"]
                found, same = movies or found, [] if movies else same
            best = _best(item, same or found)
            if same:
                out.append((EXACT if len(best) == 1 else AMBIGUOUS, best))
            elif len(best) == 1:
                out.append((NEAR if item.year else BY_TITLE, best))
            else:
                out.append((UNMATCHED, []))
        return out


def choose(titles: Sequence[Title]) -> Title:
    """Of titles that fit alike, the one with the most principals, then the one that IMDb has had longest."""
    return min(titles, key=lambda title: (-title.principals, title.number))


def _best(item: Item, titles: list[Title]) -> list[Title]:
    ranks = [(KINDS.index(title.kind), _fit(item.title, title)) for title in titles]
    return [title for title, rank in zip(titles, ranks, strict=True) if rank == min(ranks)]


def _fit(wanted: str, title: Title) -> int:
    """0 the title with its article, 1 the original one; 2 and 3 the same without articles."""
    whole = [keys(name)[0] for name in (title.primary, title.original)]
    bare = [keys(name)[1] for name in (title.primary, title.original)]
    with_article, without = keys(wanted)
    return [*(name == with_article for name in whole), *(name == without for name in bare)].index(True)
