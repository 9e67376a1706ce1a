"""Attributes of items (genres, years) and what of them a context asks for, as small vectors that a model can match.

A sentence encoder blurs "no horror, something from the eighties"; counted attributes do not. All of it is read off the
catalogue and the seeker's words so far: nothing is fitted, and nothing of the questionnaires is seen.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, SEEKER, Dialogue

MOST_GENRES = 32
FADE = 0.9  # of a genre asked for, per later utterance of the seeker
YEARS = (1, 1960, 1970, 1980, 1990, 1995, 2000, 2005, 2010, 2014, 2016, 2017, 2018)
"""First years of the bins after the first, which holds the items without a year."""

WORDS: dict[str, tuple[str, ...]] = {
    "action": ("action", "superhero", "marvel"),
    "adventure": ("adventure",),
    "animation": ("animat", "cartoon", "disney", "pixar"),
    "biography": ("biograph", "biopic", "true stor"),
    "comedy": ("comed", "funny", "laugh"),
    "crime": ("crime", "heist", "mafia"),
    "documentary": ("documentar",),
    "family": ("family", "kids", "children"),
    "fantasy": ("fantasy", "magic"),
    "history": ("histor",),
    "horror": ("horror", "scary", "slasher"),
    "mystery": ("myster",),
    "romance": ("roman", "love stor", "chick"),
    "sci-fi": ("sci-fi", "scifi", "sci fi", "science fiction", "space"),
    "science fiction": ("sci-fi", "scifi", "sci fi", "science fiction", "space"),
    "thriller": ("thriller", "suspense"),
    "war": ("war movie", "war film", "world war"),
}
"""How people ask for a genre, beginnings of words in lower case; a genre that is not here is asked for by its name."""

ERAS: tuple[tuple[str, ...], ...] = (
    ("60s", "70s", "1970", "1960", "oldies", "black and white", "old movie"),
    ("80s", "1980", "eighties"),
    ("90s", "1990", "nineties"),
    ("classic", "older", "old "),
    ("new ", "recent", "latest", "2018", "2017", "theater", "this year", "just came out", "upcoming"),
)
"""How people ask for a time."""


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Attributes of a catalogue.

    Attributes:
      genres: the commonest `MOST_GENRES`, by falling count, then by name.
      item_NF: float32 `[N, F]`, F = genres + year bins: unit vectors of an item's genres, then its year bin as one-hot.
    """

    genres: tuple[str, ...]
    item_NF: np.ndarray

    @classmethod
    def of(cls, catalogue: Catalogue) -> Attributes:
        """Reads genres and years off the catalogue."""
        count = collections.Counter(genre for item in catalogue.items for genre in item.genres)
        genres = tuple(sorted(count, key=lambda genre: (-count[genre], genre))[:MOST_GENRES])
        place = {genre: n for n, genre in enumerate(genres)}
        item_NG = np.zeros((len(catalogue), len(genres)), np.float32)
        for row, item in enumerate(catalogue.items):
            item_NG[row, [place[genre] for genre in item.genres if genre in place]] = 1.0
        item_NG /= np.maximum(np.linalg.norm(item_NG, axis=1, keepdims=True), 1.0)
        bins = np.digitize([item.year or 0 for item in catalogue.items], YEARS)
        return cls(genres, np.concatenate([item_NG, np.eye(len(YEARS) + 1, dtype=np.float32)[bins]], 1))

    @property
    def asked_size(self) -> int:
        """Z, the width of `asked`."""
        return 2 * len(self.genres) + len(ERAS) + 3

    def asked(self, dialogues: Sequence[Dialogue], where: Sequence[tuple[int, int]]) -> np.ndarray:
        """What the seeker's words before each of the turns ask for, float32 `[B, Z]`.

        Genres named, scaled to sum 1, each utterance fading by `FADE`; the genres of the last utterance that names any;
        eras named; then how far the talk is (20 turns: 1), how many items were named (10: 1) and 1 where none was.
        """
        G = len(self.genres)
        out_BZ = np.zeros((len(where), self.asked_size), np.float32)
        known: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for b, (d, t) in enumerate(where):
            fading_G, last, named = np.zeros(G, np.float32), list[int](), set[str]()
            for u, turn in enumerate(dialogues[d].turns[:t]):
                named.update(turn.items)
                if turn.role != SEEKER:
                    continue
                if (d, u) not in known:
                    known[d, u] = self._read(turn.text)
                genres, eras = known[d, u]
                fading_G *= FADE
                fading_G[genres] = 1.0
                last = genres or last
                out_BZ[b, [2 * G + era for era in eras]] = 1.0
            out_BZ[b, :G] = fading_G / max(fading_G.sum(), 1.0)
            out_BZ[b, [G + genre for genre in last]] = 1.0
            out_BZ[b, -3:] = min(t, 20) / 20, min(len(named), 10) / 10, not named
        return out_BZ

    def _read(self, text: str) -> tuple[list[int], list[int]]:
        text = f" {text.replace(MENTION, ' ').lower()} "
        genres = [n for n, genre in enumerate(self.genres) if any(w in text for w in WORDS.get(genre, (genre,)))]
        return genres, [n for n, words in enumerate(ERAS) if any(word in text for word in words)]
