import pytest

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.instances import Instance, ranking_instances
from crs_jax.runtime.errors import InputError

CATALOGUE = Catalogue(tuple(Item(i, i) for i in "abcd"))


def turn(role, *items):
    return Turn(role, "x" + MENTION * len(items), items)


def dialogue(*turns):
    return Dialogue("d", turns)


def test_by_hand():
    first = dialogue(turn(RECOMMENDER, "a"), turn(SEEKER), turn(RECOMMENDER))
    second = dialogue(
        turn(SEEKER, "b"),
        turn(RECOMMENDER, "d", "b", "d"),
        turn(RECOMMENDER, "d", "c"),
        turn(SEEKER, "a"),
        turn(RECOMMENDER, "b", "a"),
    )
    assert ranking_instances([first, second], CATALOGUE) == [
        Instance(1, 1, (3, 1), (3,)),
        Instance(1, 2, (3, 2), (2,)),
        Instance(1, 4, (1, 0), ()),
    ]


def test_the_first_message_is_no_instance_but_is_remembered():
    turns = (turn(RECOMMENDER, "a"), turn(RECOMMENDER, "a", "b"))
    assert ranking_instances([dialogue(*turns)], CATALOGUE) == [Instance(0, 1, (0, 1), (1,))]


def test_an_unknown_item_is_named():
    with pytest.raises(InputError, match="'z' is not in the catalogue of 4 items"):
        ranking_instances([dialogue(turn(SEEKER), turn(RECOMMENDER, "z"))], CATALOGUE)
