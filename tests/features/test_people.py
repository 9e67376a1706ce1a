"""People named in the talk, against texts read by eye."""

import numpy as np

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.features.people import People

CATALOGUE = Catalogue(
    (
        Item("a", "Alpha", people=("Tom Hanks", "Penélope Cruz")),
        Item("b", "Beta", people=("Tom Hanks", "Robert Downey Jr.", "Tom Hanks")),
        Item("c", "Gamma", people=("Madonna", "Peter O'Toole")),
        Item("d", "Delta"),
    )
)


def at(people, *texts, turn=None, most=48):
    roles = (SEEKER, RECOMMENDER)
    turns = tuple(Turn(roles[n % 2], text, ("d",) * text.count(MENTION)) for n, text in enumerate(texts))
    where = [(0, len(texts) if turn is None else turn)]
    rows_BS, stars_BS = people.matches([Dialogue("1", turns, {})], where, most)
    pairs = zip(rows_BS[0].tolist(), stars_BS[0].tolist(), strict=True)
    return {"abcd"[row]: stars for row, stars in pairs if row >= 0}


def test_who_is_named_by_either_side():
    people = People(CATALOGUE)
    assert at(people, "Anything with tom  hanks?") == {"a": 1, "b": 1}
    assert at(people, "I like penelope cruz.", "With Tom Hanks, maybe") == {"a": 2, "b": 1}
    assert at(people, "robert downey jr is great, peter o'toole too") == {"b": 1, "c": 1}
    assert at(people, "Tom Hanks", "TOM HANKS!") == {"a": 1, "b": 1}  # named twice counts once


def test_what_is_no_name():
    people = People(CATALOGUE)
    assert at(people, "hanks, tom, and madonna") == {}  # turned round; one word alone is no name
    assert at(people, "atom hanks tom hankss") == {}
    assert at(people, f"tom {MENTION} hanks") == {}
    assert at(people, "fine", "Tom Hanks", turn=1) == {}  # not yet said


def test_most_stars_first_and_shapes():
    people = People(CATALOGUE)
    dialogue = Dialogue("1", (Turn(SEEKER, "Tom Hanks, Penélope Cruz", ()),), {})
    rows_BS, stars_BS = people.matches([dialogue], [(0, 0), (0, 1)], most=1)
    np.testing.assert_array_equal(rows_BS, [[-1], [0]])
    np.testing.assert_array_equal(stars_BS, [[0], [2]])
    assert rows_BS.dtype == np.int32
    assert stars_BS.dtype == np.float32
    assert people.matches([dialogue], [(0, 1)])[0].shape == (1, 4)  # no more than there are items
    nobody = People(Catalogue((Item("x", "X"),))).matches([dialogue], [(0, 1)])
    np.testing.assert_array_equal(nobody[0], [[-1]])
