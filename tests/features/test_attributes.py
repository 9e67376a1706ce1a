"""Attributes by hand: genres and years of items, and what a seeker's words ask for."""

import numpy as np

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.features.attributes import FADE, MOST_GENRES, YEARS, Attributes

CATALOGUE = Catalogue(
    (
        Item("a", "Alpha", 1985, ("horror", "comedy")),
        Item("b", "Beta", 2017, ("comedy",)),
        Item("c", "Gamma", None, ()),
    )
)
DIALOGUE = Dialogue(
    "d",
    (
        Turn(SEEKER, "something scary"),
        Turn(RECOMMENDER, f"a funny one? {MENTION}", ("a",)),
        Turn(SEEKER, "no, a Comedy from the 80s"),
        Turn(SEEKER, f"like {MENTION}", ("b",)),
        Turn(RECOMMENDER, "hm"),
    ),
)


def test_items():
    attributes = Attributes.of(CATALOGUE)
    assert attributes.genres == ("comedy", "horror")  # by count, then by name
    half = 0.5**0.5
    np.testing.assert_allclose(attributes.item_NF[:, :2], [[half, half], [1, 0], [0, 0]], atol=1e-6)
    assert attributes.item_NF.shape == (3, 2 + len(YEARS) + 1)
    bins = attributes.item_NF[:, 2:].argmax(1).tolist()
    assert bins == [sum(start <= (year or 0) for start in YEARS) for year in (1985, 2017, None)]
    assert (attributes.item_NF[:, 2:].sum(1) == 1).all()


def test_asked_by_hand():
    attributes = Attributes.of(CATALOGUE)
    asked = attributes.asked([DIALOGUE], [(0, 0), (0, 1), (0, 2), (0, 3), (0, 5)])
    assert asked.shape == (5, attributes.asked_size)
    genres, last, eras, talk = asked[:, :2], asked[:, 2:4], asked[:, 4:9], asked[:, 9:]
    np.testing.assert_array_equal(asked[0, :9], 0.0)
    np.testing.assert_array_equal(genres[1], [0, 1])  # scary
    np.testing.assert_array_equal(genres[2], [0, 1])  # the recommender's words ask for nothing
    np.testing.assert_allclose(genres[3], [1 / (1 + FADE), FADE / (1 + FADE)], rtol=1e-6)
    np.testing.assert_allclose(genres[4], genres[3], rtol=1e-6)  # both have faded alike
    np.testing.assert_array_equal(last, [[0, 0], [0, 1], [0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(eras[3], [0, 1, 0, 0, 0])
    np.testing.assert_allclose(talk, [[0, 0, 1], [0.05, 0, 1], [0.1, 0.1, 0], [0.15, 0.1, 0], [0.25, 0.2, 0]])


def test_a_catalogue_without_facets_and_one_with_many():
    bare = Attributes.of(Catalogue((Item("a", "Alpha"),)))
    assert bare.genres == ()
    assert bare.asked([DIALOGUE], [(0, 2)]).shape == (1, bare.asked_size)
    many = Attributes.of(Catalogue((Item("a", "Alpha", None, tuple(f"g{n:03}" for n in range(60))),)))
    assert len(many.genres) == MOST_GENRES
