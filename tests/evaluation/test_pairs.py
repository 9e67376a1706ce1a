import numpy as np

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.pairs import make_pairs, named_before

CATALOGUE = Catalogue(tuple(Item(name, name.upper()) for name in "abcdef"))


def says(role, *items):
    return Turn(role, " ".join(["see", *[MENTION] * len(items)]), tuple(items))


DIALOGUES = (
    Dialogue("first", (says(SEEKER, "a", "b"), says(RECOMMENDER, "c"), says(SEEKER, "a"), says(RECOMMENDER, "c", "d"))),
    Dialogue("second", (says(RECOMMENDER, "e"), says(SEEKER), says(RECOMMENDER, "f"))),
)


def test_pairs_worked_by_hand():
    pairs = make_pairs(ranking_instances(DIALOGUES, CATALOGUE), DIALOGUES, CATALOGUE)
    # instances: c after (a, b); c and d after (a, b, c, a); f after e. The opening message has no context.
    np.testing.assert_array_equal(pairs.instance_P, [0, 1, 1, 2])
    np.testing.assert_array_equal(pairs.dialogue_P, [0, 0, 0, 1])
    np.testing.assert_array_equal(pairs.target_P, [2, 2, 3, 5])
    np.testing.assert_array_equal(pairs.fresh_P, [True, False, True, True])
    np.testing.assert_array_equal(pairs.dialogue_I, [0, 0, 1])
    np.testing.assert_array_equal(pairs.targets_IX, [[2, -1], [2, 3], [5, -1]])
    assert [sorted(set(row) - {-1}) for row in pairs.named_IX.tolist()] == [[0, 1], [0, 1, 2], [4]]
    assert len(pairs) == 4


def test_the_most_recently_named_comes_last():
    assert named_before(ranking_instances(DIALOGUES, CATALOGUE), DIALOGUES, CATALOGUE) == [(0, 1), (1, 2, 0), (4,)]


def test_select_keeps_the_instances():
    pairs = make_pairs(ranking_instances(DIALOGUES, CATALOGUE), DIALOGUES, CATALOGUE)
    fresh = pairs.select(pairs.fresh_P)
    np.testing.assert_array_equal(fresh.target_P, [2, 3, 5])
    np.testing.assert_array_equal(fresh.instance_P, [0, 1, 2])
    assert fresh.named_IX is pairs.named_IX


def test_no_instances():
    pairs = make_pairs([], DIALOGUES, CATALOGUE)
    assert len(pairs) == 0
    assert len(pairs.named_IX) == 0
