import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crs_jax.data import splits
from crs_jax.data.dialogue import MENTION, SEEKER, Dialogue, Turn
from crs_jax.runtime.errors import InputError


def dialogue(n, recommender="r", seeker=None, *texts):
    turns = tuple(Turn(SEEKER, text) for text in (texts or (f"hello {n}",)))
    return Dialogue(f"d{n}", turns, seeker_id=seeker or f"s{n}", recommender_id=recommender)


pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 14)), min_size=4, max_size=60)


@settings(max_examples=80, deadline=None)
@given(pairs, st.integers(0, 25), st.integers(0, 5))
@example([(1, 0), (1, 0), (1, 0), (1, 1)], 1, 0)
def test_by_recommender(pairs, count, seed):
    given = [dialogue(n, f"r{r}", f"s{s}") for n, (r, s) in enumerate(pairs)]
    try:
        train, validation, dropped = splits.by_recommender(given, count, seed)
    except InputError:  # nothing left to train on
        return
    assert len(train) + len(validation) + dropped == len(given)
    assert [d for d in given if d in train] == train
    assert [d for d in given if d in validation] == validation
    if len({d.recommender_id for d in given}) > 1:  # with one alone the cut goes by seekers
        assert not {d.recommender_id for d in train} & {d.recommender_id for d in validation}
    assert not {d.seeker_id for d in train} & {d.seeker_id for d in validation}
    side = 0 if len({r for r, _ in pairs}) > 1 else 1
    smallest = min(sum(pair[side] == other[side] for other in pairs) for pair in pairs)
    assert len(validation) <= max(count, smallest if count else 0)
    seekers = {d.seeker_id for d in validation}
    lost = [d for d in given if d not in train and d not in validation]
    assert all(d.seeker_id in seekers for d in lost)
    assert splits.by_recommender(given, count, seed) == (train, validation, dropped)


def test_few_are_dropped_where_few_must_be():
    """Two circles of people with one bridge: the cut falls between them."""
    circles = [(f"r{c}{i % 4}", f"s{c}{i % 5}") for c in range(2) for i in range(20)]
    given = [dialogue(n, r, s) for n, (r, s) in enumerate([*circles, ("r00", "s10")])]
    _, validation, dropped = splits.by_recommender(given, 21, 0)
    assert len(validation) in (20, 21)
    assert dropped <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=3, max_size=40), st.integers(0, 20), st.integers(0, 5))
def test_by_opening(openings, count, seed):
    given = [dialogue(n, "r", None, f"Opening, {o}!", str(n)) for n, o in enumerate(openings)]
    try:
        train, validation = splits.by_opening(given, count, seed)
    except InputError:
        return
    assert sorted([*train, *validation], key=given.index) == given
    assert not {splits.opening(d) for d in train} & {splits.opening(d) for d in validation}
    if len(set(openings)) == len(openings):
        assert len(validation) == count
    assert splits.by_opening(given, count, seed) == (train, validation)


def test_opening():
    item = Dialogue("d", (Turn(SEEKER, f"I like {MENTION}!", ("5",)), Turn(SEEKER, "really  NOT")))
    assert splits.opening(item) == ("i like 5",)
    assert splits.opening(item, 4) == ("i like 5", "really not")
    assert splits.opening(item, 99) == ("i like 5", "really not")


def test_drop_shared():
    test = [dialogue(0, "r", None, "Hi there", "x y")]
    train = [dialogue(1, "r", None, "hi, THERE!", "z"), dialogue(2, "r", None, "Hello")]
    assert splits.drop_shared(train, test) == train[1:]
    assert splits.drop_shared(train, test, min_words=3) == train


def test_cut_test_is_the_same_in_every_run():
    given = [dialogue(n) for n in range(40)]
    train, test = splits.cut_test(given)
    assert (len(train), len(test)) == (34, 6)
    assert splits.cut_test(given) == (train, test)


def test_subset():
    given = [dialogue(n) for n in range(30)]
    assert splits.subset(given, 0, 1) == splits.subset(given, 30, 1) == tuple(given)
    chosen = splits.subset(given, 7, 1)
    assert len(chosen) == len({d.dialogue_id for d in chosen}) == 7
    assert sorted(chosen, key=given.index) == list(chosen)
    assert splits.subset(given, 7, 1) == chosen != splits.subset(given, 7, 2)
    with pytest.raises(InputError, match="-1"):
        splits.subset(given, -1, 0)


def test_a_count_that_cannot_be():
    given = [dialogue(0), dialogue(1)]
    with pytest.raises(InputError, match=r"config.data.validation_dialogues is -1"):
        splits.by_recommender(given, -1, 0)
    with pytest.raises(InputError, match=r"validation_dialogues=9 leaves nothing to train on of 2 dialogues"):
        splits.by_opening(given, 9, 0)
