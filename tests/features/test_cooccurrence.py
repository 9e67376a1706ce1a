"""What is named together, against plain loops over dialogues, the leaving out of a person's own dialogues included."""

import math

import numpy as np
import pytest

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.features.cooccurrence import DAMPING, SHARPNESS, CoOccurrence

N = 12
CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"Title {n}") for n in range(N)))


def dialogue(rng, number, seeker, recommender):
    turns = []
    for t in range(rng.integers(2, 6)):
        items = tuple(f"i{n}" for n in rng.integers(0, N, rng.integers(0, 3)))
        turns.append(Turn((SEEKER, RECOMMENDER)[t % 2], MENTION * len(items), items))
    return Dialogue(f"d{number}", tuple(turns), {}, seeker, recommender)


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(0)
    return [dialogue(rng, n, f"s{n % 11}", f"r{n % 7}" if n % 5 else None) for n in range(40)]


def plain(train, target, before):
    """Value of every item, by loops."""
    own = [d for d in train if d.dialogue_id == target.dialogue_id]
    same = [
        d
        for d in train
        if own and ((d.seeker_id and d.seeker_id == target.seeker_id)
                    or (d.recommender_id and d.recommender_id == target.recommender_id))
    ]  # fmt: skip
    sets = [{i for t in d.turns for i in t.items} for d in train if d not in own and d not in same]
    named = list(dict.fromkeys(i for turn in target.turns[:before] for i in turn.items))
    out = {}
    for x in (f"i{n}" for n in range(N)):
        total = 0.0
        for j in named:
            both = sum(x in s and j in s for s in sets) if x != j else 0
            damped = (sum(x in s for s in sets) + DAMPING) * (sum(j in s for s in sets) + DAMPING)
            total += both / math.sqrt(damped) / len(named)
        out[x] = math.log(1 + SHARPNESS * total)
    return out


def values(rows_K, value_K):
    return {f"i{row}": float(value) for row, value in zip(rows_K, value_K, strict=True) if row >= 0}


def test_a_training_dialogue_is_no_evidence_for_itself(train):
    together = CoOccurrence(train, CATALOGUE)
    where = [(d, t) for d in range(12) for t in range(len(train[d].turns) + 1)]
    rows_BK, value_BK = together.neighbours(train, where)
    assert rows_BK.shape == value_BK.shape == (len(where), N)
    seen = 0
    for (d, t), rows, value in zip(where, rows_BK, value_BK, strict=True):
        expected = {i: v for i, v in plain(train, train[d], t).items() if v > 0}
        assert values(rows, value) == pytest.approx(expected, abs=1e-5)
        assert (np.diff(value) <= 0).all()  # the nearest first
        seen += len(expected)
    assert seen > 100


def test_a_dialogue_of_another_split_has_all_the_evidence(train):
    rng = np.random.default_rng(1)
    other = [dialogue(rng, 100 + n, "s1", "r1") for n in range(4)]  # persons of train, but not a dialogue of it
    together = CoOccurrence(train, CATALOGUE)
    where = [(d, len(other[d].turns)) for d in range(4)]
    for (d, t), rows, value in zip(where, *together.neighbours(other, where), strict=True):
        expected = {i: v for i, v in plain(train, other[d], t).items() if v > 0}
        assert values(rows, value) == pytest.approx(expected, abs=1e-5)
    assert together.left_out(other[0]) == []
    assert set(together.left_out(train[0])) == {n for n, d in enumerate(train) if d.seeker_id == "s0" or n == 0}


def test_the_most_and_nothing(train):
    together = CoOccurrence(train, CATALOGUE)
    where = [(0, 0), (0, len(train[0].turns)), (1, len(train[1].turns))]
    rows_BK, value_BK = together.neighbours(train, where, most=3)
    whole_BK, all_BK = together.neighbours(train, where)
    assert rows_BK.shape == (3, 3)
    np.testing.assert_array_equal(rows_BK[0], -1)
    np.testing.assert_array_equal(value_BK, all_BK[:, :3])
    np.testing.assert_array_equal(rows_BK, whole_BK[:, :3])
