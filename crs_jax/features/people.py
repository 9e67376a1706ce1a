"""Items with people named in the talk: "anything with Tom Hanks", "the one by Sofia Coppola".

A sentence encoder knows few names, and a small language model none; the catalogue's credits do. Names are found in the
text so far of both speakers, spelled out (two words or more); nothing is fitted.
"""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import MENTION, Dialogue

LONGEST = 4  # words of a name
MOST_STARS = 2.0  # more people of one item count as this many


def plain_words(text: str) -> list[str]:
    """Lower-case words without accents, points and apostrophes."""
    text = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", text.replace("'", "").replace(".", ""))


class People:
    """Who is in which item, by the catalogue."""

    def __init__(self, catalogue: Catalogue):
        """Reads the credits of all items."""
        self.num_items = len(catalogue)
        self._rows: dict[str, list[int]] = {}
        for row, item in enumerate(catalogue.items):
            for name in dict.fromkeys(" ".join(plain_words(person)) for person in item.people):
                if 2 <= len(name.split()) <= LONGEST:
                    self._rows.setdefault(name, []).append(row)

    def named_in(self, text: str) -> set[str]:
        """Names of the catalogue's people that stand in the text, in plain words."""
        found = set[str]()
        for part in text.split(MENTION):
            words = plain_words(part)
            for size in range(2, LONGEST + 1):
                found.update(" ".join(words[at : at + size]) for at in range(len(words) - size + 1))
        return {name for name in found if name in self._rows}

    def matches(
        self, dialogues: Sequence[Dialogue], where: Sequence[tuple[int, int]], most: int = 48
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items with people whom either speaker named before each of the turns, those with more of them first.

        Returns:
          Rows int32 `[B, S]`, -1 padded, S = min(most, N), and float32 `[B, S]`, how many of those people are in it, at
          most `MOST_STARS`, 0 where padded.
        """
        S = min(most, self.num_items)
        rows_BS, stars_BS = np.full((len(where), S), -1, np.int32), np.zeros((len(where), S), np.float32)
        known: dict[tuple[int, int], set[str]] = {}
        for b, (d, t) in enumerate(where):
            named = dict[str, None]()
            for u, turn in enumerate(dialogues[d].turns[:t]):
                if (d, u) not in known:
                    known[d, u] = self.named_in(turn.text)
                named.update(dict.fromkeys(sorted(known[d, u])))
            count = collections.Counter(row for name in named for row in self._rows[name])
            for s, (row, stars) in enumerate(count.most_common(S)):
                rows_BS[b, s], stars_BS[b, s] = row, min(stars, MOST_STARS)
        return rows_BS, stars_BS
