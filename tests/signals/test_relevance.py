"""Relevance against plain loops and examples worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.features.context import DECAY, context_vectors, named_rows
from crs_jax.runtime.errors import InputError
from crs_jax.signals import relevance

CATALOGUE = Catalogue((Item("a", "Alpha", 1999), Item("b", "Beta"), Item("c", "Gamma", 2001)))
ITEMS_NE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.6, 0.8, 0]], np.float32)
E = 4
MEANING = {
    "hello": [0, 0, 0, 1],
    "like Alpha (1999)": [1, 0, 0, 0],
    "more like Beta": [0, 1, 0, 0],
    "thanks": [0, 0, 1, 0],
}


def embed(texts):
    return np.array([MEANING[text] for text in texts], np.float32).reshape(-1, E)


DIALOGUE = Dialogue(
    "d",
    (
        Turn(SEEKER, "hello"),
        Turn(RECOMMENDER, f"what about {MENTION} or {MENTION} or {MENTION}?", ("c", "b", "c")),
        Turn(SEEKER, f"like {MENTION}", ("a",)),
        Turn(SEEKER, f"more like {MENTION}", ("b",)),
        Turn(RECOMMENDER, "hm"),
        Turn(RECOMMENDER, f"{MENTION} then", ("a",)),
        Turn(SEEKER, "thanks"),
    ),
)


def vectors(where, window=3):
    return context_vectors([DIALOGUE], where, CATALOGUE, ITEMS_NE, embed, window)


def unit(x):
    return np.asarray(x) / np.linalg.norm(x)


def test_context_vectors_by_hand():
    got = vectors([(0, 0), (0, 1), (0, 2), (0, 5), (0, 7)])
    assert got["text_BE"].dtype == got["named_BE"].dtype == np.float32
    g = DECAY
    text = [
        [0, 0, 0, 0],  # nothing before
        [0, 0, 0, 1],  # hello
        [0, 0, 0, 1],  # the recommender's words are not the seeker's wish
        unit([g**2, g, 0, 0]),  # turns 2, 3, 4
        [0, 0, 1, 0],  # turns 4, 5, 6, one past the last
    ]
    named = [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        unit((ITEMS_NE[2] + ITEMS_NE[1]) / 2),  # distinct
        unit([0.5, 0.5, 0, 0]),
        [1, 0, 0, 0],
    ]
    np.testing.assert_allclose(got["text_BE"], text, atol=1e-6)
    np.testing.assert_allclose(got["named_BE"], named, atol=1e-6)


def test_the_window_counts_utterances_and_the_future_is_not_seen():
    wide, narrow = vectors([(0, 4)], window=8), vectors([(0, 4)], window=1)
    np.testing.assert_allclose(narrow["text_BE"][0], [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(narrow["named_BE"][0], [0, 1, 0, 0], atol=1e-6)
    assert wide["text_BE"][0, 3] > 0
    cut = Dialogue("d", DIALOGUE.turns[:4])
    again = context_vectors([cut], [(0, 4)], CATALOGUE, ITEMS_NE, embed, 8)
    for name in wide:
        np.testing.assert_array_equal(wide[name], again[name])


def test_the_encoder_is_asked_once_with_distinct_rendered_seeker_texts():
    asked = []

    def recording(texts):
        asked.append(list(texts))
        return embed(texts)

    where = [(d, t) for d in range(2) for t in range(8)]
    context_vectors([DIALOGUE, DIALOGUE], where, CATALOGUE, ITEMS_NE, recording, 8)
    (texts,) = asked
    assert sorted(texts) == ["hello", "like Alpha (1999)", "more like Beta", "thanks"]
    assert set(texts) <= set(relevance.utterance_texts([DIALOGUE], CATALOGUE)[0])


def test_scores_of_all_items_equal_plain_loops():
    rng = np.random.default_rng(0)
    text, named, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(3, 9, 16)))
    named[::3] = 0
    text[[3, 4]] = 0  # 3 has neither
    expected = np.zeros((9, 9))
    for b in range(9):
        for n in range(9):
            parts = [v[b] @ items[n] for v in (text, named) if v[b].any()]
            expected[b, n] = np.mean(parts) if parts else 0
    arrays = [jnp.asarray(x, jnp.float32) for x in (text, named, items)]
    np.testing.assert_allclose(jax.jit(relevance.relevance_N)(*arrays), expected, atol=1e-6)
    act_BM = np.array([[n, -1, (n + 4) % 9] for n in range(9)])
    act_BM[5] = -1
    got = np.asarray(jax.jit(relevance.relevance)(act_BM, *arrays))
    for b in range(9):
        rows = [n for n in act_BM[b] if n >= 0]
        if rows:
            assert got[b] == pytest.approx(np.mean([expected[b, n] for n in rows]), abs=1e-6)
        else:
            assert np.isnan(got[b])


def test_turn_relevance_by_hand():
    (got,) = relevance.turn_relevance([DIALOGUE], CATALOGUE, ITEMS_NE, embed, 3)
    assert got.dtype == np.float32
    # Turn 1 proposes what is orthogonal to "hello"; turn 5 only repeats what the seeker named: no proposal.
    assert np.flatnonzero(~np.isnan(got)).tolist() == [1]
    assert got[1] == pytest.approx(0.0, abs=1e-6)

    more = Catalogue((*CATALOGUE.items, Item("d", "Delta")))
    items = np.vstack([ITEMS_NE, [0.8, 0.6, 0, 0]]).astype(np.float32)
    turns = list(DIALOGUE.turns)
    turns[5] = Turn(RECOMMENDER, f"{MENTION} or {MENTION} then", ("a", "d"))
    (got,) = relevance.turn_relevance([Dialogue("e", tuple(turns))], more, items, embed, 3)
    g = DECAY
    # Of a and d only d is new: cosines with what turns 2 to 4 said and with the mean of a and b.
    want = (unit([g**2, g]) @ [0.8, 0.6] + unit([1, 1]) @ [0.8, 0.6]) / 2
    assert np.flatnonzero(~np.isnan(got)).tolist() == [1, 5]
    assert got[5] == pytest.approx(want, abs=1e-6)


def test_named_rows_and_new_items_equal_a_loop():
    where = [(0, t) for t in range(len(DIALOGUE.turns) + 1)]
    rows, by_recommender = named_rows([DIALOGUE], where, CATALOGUE, most=4)
    for b, (_, t) in enumerate(where):
        said = {CATALOGUE.index[item] for turn in DIALOGUE.turns[:t] for item in turn.items}
        assert {row for row in rows[b].tolist() if row >= 0} == said
    # Latest first: a, b, c; the recommender was the first to name c and b, the seeker a.
    assert rows[-1].tolist() == [0, 1, 2, -1]
    assert by_recommender[-1].tolist() == [0, 1, 1, 0]
    latest, _ = named_rows([DIALOGUE], [(0, 4)], CATALOGUE, most=2)
    assert latest.tolist() == [[1, 0]]  # b in turn 3, a in turn 2; c of turn 1 no longer fits
    acts = np.array([[0, 2, -1]] * len(where), np.int32)
    got = np.asarray(relevance.new_items(jnp.asarray(acts), jnp.asarray(rows)))
    for b in range(len(where)):
        assert got[b].tolist() == [-1 if row in rows[b].tolist() else row for row in acts[b].tolist()]


def test_no_proposals_and_unknown_items():
    silent = Dialogue("s", (Turn(SEEKER, "hello"), Turn(RECOMMENDER, "hm")))
    (got,) = relevance.turn_relevance([silent], CATALOGUE, ITEMS_NE, embed, 3)
    assert np.isnan(got).all()
    stranger = Dialogue("s", (Turn(SEEKER, "hello"), Turn(RECOMMENDER, MENTION, ("z",)), Turn(SEEKER, "hello")))
    with pytest.raises(InputError, match="'z' is not in the catalogue"):
        context_vectors([stranger], [(0, 2)], CATALOGUE, ITEMS_NE, embed, 3)
