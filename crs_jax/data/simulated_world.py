"""The simulated world: a catalogue of invented items, and seekers whose utility for each of them is known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from crs_jax.data import simulated_words as words

GENRE_NAMES = tuple(genre.name for genre in words.GENRES)


@dataclasses.dataclass(frozen=True)
class World:
    """The catalogue, axis N items, G genres, F persons.

    Attributes:
      ids: item ids, distinct.
      titles, years, plots: one each.
      genre_NG: share of each genre in the item, rows sum to 1.
      person_NF: 1 where the person directs or stars.
      persons: their names.
      popularity_N: chance to be proposed for its fame alone, sums to 1.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    years: np.ndarray
    plots: tuple[str, ...]
    genre_NG: np.ndarray
    person_NF: np.ndarray
    persons: tuple[str, ...]
    popularity_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, row: int) -> str:
        """Title and year, as ReDial writes it."""
        return f"{self.titles[row]} ({self.years[row]})"

    def genres(self, row: int) -> list[str]:
        """Genres, the main one first."""
        return [GENRE_NAMES[g] for g in np.argsort(-self.genre_NG[row], kind="stable") if self.genre_NG[row, g] > 0]

    def people(self, row: int) -> list[str]:
        """Director first, then the star."""
        return [self.persons[f] for f in np.flatnonzero(self.person_NF[row])]


@dataclasses.dataclass(frozen=True)
class Seeker:
    """One seeker's hidden taste.

    Attributes:
      needs: what the seeker can tell of it, (kind, value): a genre or person index, a decade, an item row.
      utility_N: true utility of each item, in [0, 1].
      cheer: added to the mood of every reply, whatever was proposed.
      pace: multiplies every reply latency.
    """

    needs: tuple[tuple[str, int], ...]
    utility_N: np.ndarray
    cheer: float
    pace: float


def make_world(rng: np.random.Generator, items: int) -> World:
    """Draws the catalogue. Plots and titles carry the genre, so that a sentence embedding of them is informative."""
    n_genres = len(words.GENRES)
    persons = _names(rng, max(2 * n_genres, items // 4))
    popularity = np.arange(1, items + 1) ** -0.9
    genre_NG = np.zeros((items, n_genres))
    person_NF = np.zeros((items, len(persons)))
    titles: list[str] = []
    plots, years = [], np.zeros(items, dtype=int)
    for n in range(items):
        main = n % n_genres
        genre = words.GENRES[main]
        genre_NG[n, main] = 1.0
        plot = f"{pick(rng, genre.heroes)} {pick(rng, genre.deeds)} {pick(rng, genre.places)}."
        if rng.random() < 0.35:
            other = (main + int(rng.integers(1, n_genres))) % n_genres
            genre_NG[n, main], genre_NG[n, other] = 0.7, 0.3
            plot += f" {pick(rng, words.GENRES[other].heroes)} turns up as well."
        plots.append(plot)
        titles.append(_title(rng, genre, titles))
        years[n] = int(rng.choice(list(words.DECADES))) + int(rng.integers(10))
        home = np.arange(main, len(persons), n_genres)  # persons who mostly work in this genre
        cast = rng.choice(home if rng.random() < 0.7 and len(home) > 1 else len(persons), size=2, replace=False)
        person_NF[n, cast] = 1.0
    ids = tuple(str(i) for i in rng.permutation(rng.choice(np.arange(75_000, 75_000 + 20 * items), items, False)))
    return World(
        ids, tuple(titles), years, tuple(plots), genre_NG, person_NF, persons,
        rng.permutation(popularity / popularity.sum()),
    )  # fmt: skip


def make_seeker(rng: np.random.Generator, world: World) -> Seeker:
    """Draws a seeker: tastes over genres, decades and persons, a share of popularity, and idiosyncratic noise.

    Utility is the logistic of the sum, so that a random item is worth about 0.3 and the right genre about 0.7.
    """
    n_genres, n_persons = world.genre_NG.shape[1], world.person_NF.shape[1]
    loved, liked = rng.choice(n_genres, size=2, replace=False)
    genre_G = np.asarray(rng.normal(0.0, 0.25, n_genres))
    genre_G[loved], genre_G[liked] = 2.6, 1.3
    in_genre = np.flatnonzero(world.person_NF[world.genre_NG[:, loved] > 0].any(axis=0))
    persons = {int(rng.choice(in_genre)), int(rng.integers(n_persons))}
    person_F = np.zeros(n_persons)
    person_F[list(persons)] = 1.0
    decade = int(rng.choice(list(words.DECADES)))
    distance_N = np.abs(world.years // 10 * 10 - decade) / 10
    fame_N = np.log(world.popularity_N)
    logit_N = (
        world.genre_NG @ genre_G
        + 1.2 * np.minimum(world.person_NF @ person_F, 1.0)
        + 0.5 * (1.0 - distance_N)
        + 0.35 * (fame_N - fame_N.mean()) / fame_N.std()
        + rng.normal(0.0, 0.5, len(world))
    )
    utility_N = 1.0 / (1.0 + np.exp(1.1 - logit_N))
    best = np.argsort(-utility_N, kind="stable")[: max(3, len(world) // 12)]
    needs = [("genre", int(loved)), ("item", int(rng.choice(best))), ("decade", decade)]
    needs += [("person", person) for person in sorted(persons)]
    needs += [("item", int(rng.choice(best))), ("genre", int(liked))]
    return Seeker(tuple(needs), utility_N, float(rng.normal(0.0, 0.08)), float(np.exp(rng.normal(0.0, 0.2))))


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _names(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Distinct names; numbered as dynasties are ("Nora Vance II") once the combinations are used up."""
    combinations = [f"{first} {last}" for last in words.LAST_NAMES for first in words.FIRST_NAMES]
    order = rng.permutation(len(combinations))
    rounds, numerals = -(-count // len(order)), ("", " II", " III", " IV", " V")
    suffixes = [numerals[r] if r < len(numerals) else f" {r + 1}" for r in range(rounds)]
    return tuple(combinations[i] + suffix for suffix in suffixes for i in order)[:count]


def _title(rng: np.random.Generator, genre: words.Genre, taken: list[str]) -> str:
    """A title no other item has; a sequel's number once an attempt collides too often."""
    for number in itertools.count(1):
        for _ in range(8):
            title = f"The {pick(rng, words.TITLE_HEADS)} {pick(rng, genre.titles)}"
            if number > 1:
                title += f" {number}"
            if title not in taken:
                break
        else:
            continue
        break
    return title
