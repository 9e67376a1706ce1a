"""Engagement: hand-worked dialogues, a regression oracle, and the score against a plain loop."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.runtime.errors import InputError
from crs_jax.signals.engagement import CLIP, PARTS, EngagementModel, availability
from crs_jax.signals.reactions import plain_text, reactions

S, R = SEEKER, RECOMMENDER


def dialogue(*turns, name="d", feedback=None):
    """Turns as (role, text, items, seconds), the last two optional; `*` in the text is a mention."""
    built = []
    for role, text, *rest in turns:
        items = tuple(rest[0]) if rest else ()
        built.append(Turn(role, text.replace("*", MENTION), items, rest[1] if len(rest) > 1 else None))
    return Dialogue(name, tuple(built), feedback or {})


TALK = dialogue(
    (R, "hello", (), 0),
    (S, "hi a horror movie please", (), 5),
    (R, "try *", ("7",), 9),
    (R, "have you seen it", (), 12),
    (S, "no but I will watch *", ("7",), 30),
    (S, "thanks", (), 33),
    (R, "also *", ("8",), 40),
    (S, "not for me", (), 41),
    (R, "bye", (), 50),
)


def random_dialogues(rng, count=30, timed=0.7):
    out = []
    for d in range(count):
        clock, turns = 0.0, []
        with_times = rng.random() < timed
        for _ in range(int(rng.integers(1, 10))):
            clock += float(rng.integers(0, 40))
            items = tuple(str(i) for i in rng.integers(0, 4, size=rng.integers(0, 3)))
            words = ["word"] * int(rng.integers(0, 12)) + ["*"] * len(items)
            text = " ".join(words) + (" sounds good" if rng.random() < 0.2 else "")
            known = with_times and rng.random() < 0.95
            turns.append((S if rng.random() < 0.5 else R, text or "ok", items, clock if known else None))
        out.append(dialogue(*turns, name=str(d)))
    return out


def test_reactions_by_hand():
    found = reactions(TALK)
    assert [r.turn for r in found] == [0, 3, 6, 8]
    assert [len(r.proposal) for r in found] == [1, 2, 1, 1]
    assert [len(r.before) for r in found] == [0, 1, 2, 1]
    assert [len(r.after) for r in found] == [1, 2, 1, 0]
    assert [r.returns for r in found] == [True, True, False, False]
    assert plain_text(found[1].after) == "no but I will watch thanks"


def test_parts_by_hand():
    model = EngagementModel((1.0, 0.5, 0.25), {}, {}, {})
    parts = {name: values[0] for name, values in model.parts([TALK]).items()}
    nan = math.nan
    log = math.log
    # Read before turn 4: "try *" and "have you seen it", 6 words; typed: 6 words; 18 seconds after turn 3.
    expected = {
        "dwell": [log(6) - 1 - 0.5 * log(2) - 0.25 * log(6), nan, nan,
                  log(19) - 1 - 0.5 * log(7) - 0.25 * log(7), nan, nan,
                  log(2) - 1 - 0.5 * log(3) - 0.25 * log(4), nan, nan],
        "length": [log(6), nan, nan, log(8), nan, nan, log(4), nan, nan],
        "continuation": [1, nan, nan, 1, nan, nan, 0.5, nan, 0],
        "uptake": [nan, nan, nan, 1, nan, nan, -1, nan, nan],
        "clicks": [nan] * 9,
    }  # fmt: skip
    for name in PARTS:
        assert parts[name].dtype == np.float32
        np.testing.assert_allclose(parts[name], expected[name], rtol=1e-6, err_msg=name)


def test_a_title_is_one_word_even_between_letters():
    tight = dialogue((R, "a", (), 0), (S, "x*y", ("1",), 3))
    spaced = dialogue((R, "a", (), 0), (S, "x * y", ("1",), 3))
    model = EngagementModel((0.0, 0.0, 0.0), {}, {}, {})
    for talk in (tight, spaced):
        assert model.parts([talk])["length"][0][0] == pytest.approx(math.log(4))


def test_a_clock_that_runs_backwards_counts_as_no_wait():
    talk = dialogue((R, "a", (), 10), (S, "b", (), 7))
    assert EngagementModel((0.0, 0.0, 0.0), {}, {}, {}).parts([talk])["dwell"][0][0] == 0.0


@pytest.mark.parametrize(
    ("answer", "items", "expected"),
    [
        ("I will watch it tonight", (), 1),
        ("ok, I'll check that out", (), 1),
        ("I\u2019ll give it a try", (), 1),
        ("Ill have to see it", (), 1),
        ("I would love to see that", (), 1),
        ("That sounds really good!", (), 1),
        ("sounds great", (), 1),
        ("adding it to my list", (), 1),
        ("can't wait", (), 1),
        ("good suggestion, thanks", (), 1),
        ("oh I loved *", ("1",), 1),
        ("have you seen *", ("2",), 0),
        ("not my kind of movie", (), -1),
        ("no, they don't sound that way to me", (), 0),
        ("it wasn't very good", (), -1),
        ("that is not a good suggestion", (), -1),
        ("I didn\u2019t really like it", (), -1),
        ("that is too scary, something else please", (), -1),
        ("No thank you, I hate westerns", (), -1),
        ("it is a bit old but I like it", (), 0),
        ("it was not boring, I wasn't disappointed", (), 0),
        ("I don't hate it", (), 0),
        ("I liked * but it was boring", ("1",), 0),  # named and refused
        ("I will not watch it", (), 0),
        ("the first sounds good, the rest sad", (), 1),  # which item is meant is beyond matching words
        ("I watched it, it was fine", (), 0),
        ("what is it about?", (), 0),
    ],
)
def test_uptake(answer, items, expected):
    talk = dialogue((R, "try *", ("1",)), (S, answer, items))
    assert EngagementModel(None, {}, {}, {}).parts([talk])["uptake"][0][0] == expected


def test_uptake_of_an_unanswered_proposal_is_zero():
    parts = EngagementModel(None, {}, {}, {}).parts([dialogue((S, "hi"), (R, "try *", ("1",)))])
    assert parts["uptake"][0].tolist()[1] == 0
    assert parts["continuation"][0].tolist()[1] == 0
    assert np.isnan(parts["length"][0]).all()


def test_dwell_is_the_residual_of_least_squares():
    dialogues = random_dialogues(np.random.default_rng(0), count=200)
    rows = []
    for talk in dialogues:
        turns = talk.turns
        for t, (turn, answer) in enumerate(itertools.pairwise(turns)):
            if turn.role == R and answer.role == S and None not in (turn.seconds, answer.seconds):
                start = t
                while start and turns[start - 1].role == R:
                    start -= 1
                count = [len(x.text.replace(MENTION, " T ").split()) for x in (*turns[start : t + 1], answer)]
                rows.append(
                    [math.log1p(answer.seconds - turn.seconds), math.log1p(sum(count[:-1])), math.log1p(count[-1])]
                )
    rows = np.array(rows)
    oracle = LinearRegression().fit(rows[:, 1:], rows[:, 0])
    model = EngagementModel.fit(dialogues)
    np.testing.assert_allclose(model.dwell_weights, [oracle.intercept_, *oracle.coef_], atol=1e-8)
    dwell = np.concatenate(model.parts(dialogues)["dwell"])
    np.testing.assert_allclose(dwell[~np.isnan(dwell)], rows[:, 0] - oracle.predict(rows[:, 1:]), atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_score_is_the_plain_loop(seed, weights):
    """Weights are renormalised over the parts that are known: a missing time never counts as an average one."""
    rng = np.random.default_rng(seed)
    train, other = random_dialogues(rng), random_dialogues(rng, 5)
    weight = dict(zip(PARTS, weights, strict=True))
    model = EngagementModel.fit(train, weight)
    raw_train, raw = model.parts(train), model.parts(other)
    scale = {}
    for part in PARTS:
        values = [float(x) for row in raw_train[part] for x in row if not math.isnan(x)]
        if values:
            mean = sum(values) / len(values)
            std = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
            if std > 1e-6:
                scale[part] = mean, std
    scores = model.score(other)
    for d, talk in enumerate(other):
        assert scores[d].dtype == np.float32
        for t in range(len(talk.turns)):
            total = known = 0.0
            for part in PARTS:
                value = float(raw[part][d][t])
                if part in scale and not math.isnan(value):
                    z = (value - scale[part][0]) / scale[part][1]
                    total += weight[part] * max(-CLIP, min(CLIP, z))
                    known += weight[part]
            if known == 0:
                assert math.isnan(scores[d][t])
            else:
                assert scores[d][t] == pytest.approx(total / known, abs=1e-4)


def test_only_the_last_message_of_a_recommenders_run_is_scored():
    dialogues = random_dialogues(np.random.default_rng(1))
    for talk, score in zip(dialogues, EngagementModel.fit(dialogues).score(dialogues), strict=True):
        roles = [turn.role for turn in talk.turns] + [S]
        ends = [role == R and after == S for role, after in itertools.pairwise(roles)]
        assert (~np.isnan(score)).tolist() == ends


def test_scores_do_not_depend_on_what_else_is_scored():
    rng = np.random.default_rng(2)
    train, other = random_dialogues(rng), random_dialogues(rng)
    model = EngagementModel.fit(train)
    np.testing.assert_array_equal(model.score(other)[3], model.score(other[3:4])[0])


def test_answers_to_the_questionnaire_never_enter():
    dialogues = random_dialogues(np.random.default_rng(3))
    answers = {str(i): Feedback(1, 1, i % 2) for i in range(4)}
    labelled = [dataclasses.replace(talk, feedback=answers) for talk in dialogues]
    assert EngagementModel.fit(labelled) == EngagementModel.fit(dialogues)
    for a, b in zip(
        EngagementModel.fit(labelled).score(labelled), EngagementModel.fit(dialogues).score(dialogues), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_corpus_without_times_is_scored_by_the_other_parts():
    dialogues = random_dialogues(np.random.default_rng(4), timed=0.0)
    model = EngagementModel.fit(dialogues)
    assert model.dwell_weights is None
    found = availability(dialogues, model)
    ends = sum(len(reactions(talk)) for talk in dialogues)
    answered = sum(bool(r.after) for talk in dialogues for r in reactions(talk))
    assert (found["dwell"], found["length"], found["continuation"], found["turns"]) == (0, answered, ends, ends)
    timed = random_dialogues(np.random.default_rng(4), timed=1.0)
    assert availability(timed, model)["dwell"] == 0  # train could not fit it
    assert availability(timed, EngagementModel.fit(timed))["dwell"] > 0


def test_a_part_that_is_constant_on_train_is_left_out():
    talk = dialogue((R, "try *", ("1",)), (S, "no"), (R, "try *", ("2",)), (S, "no never again"))
    model = EngagementModel.fit([talk])
    assert set(model.mean) == {"length", "continuation"}  # uptake is 0 twice
    assert not np.isnan(model.score([talk])[0][[0, 2]]).any()


def test_nothing_to_fit_on():
    model = EngagementModel.fit([dialogue((S, "hello"))])
    assert np.isnan(model.score([TALK])[0]).all()


def test_longer_slower_accepting_answers_score_higher():
    train = random_dialogues(np.random.default_rng(5), 100, timed=1.0)
    model = EngagementModel.fit(train)

    def scored(answer, seconds):
        talk = dialogue((S, "hi", (), 0), (R, "try *", ("1",), 5), (S, answer, (), 5 + seconds), (R, "ok", (), 99))
        return model.score([talk])[0][1]

    assert scored("word " * 9 + "again", 8) > scored("word", 8)
    assert scored("word word", 30) > scored("word word", 2)
    assert scored("sounds good", 8) > scored("word word", 8)


def test_json_round_trip():
    for timed in (0.0, 1.0):
        dialogues = random_dialogues(np.random.default_rng(6), timed=timed)
        model = EngagementModel.fit(dialogues, {"dwell": 2.0, "length": 1.0})
        assert EngagementModel.from_json(model.to_json()) == model


@pytest.mark.parametrize(
    ("weights", "message"), [({"smell": 1.0}, "'smell' is not a part"), ({"dwell": -1.0}, "dwell is -1")]
)
def test_bad_weights(weights, message):
    with pytest.raises(InputError, match=message):
        EngagementModel.fit([TALK], weights)


@pytest.mark.data
def test_redial_latencies(data_dir, tmp_path):
    """The data's README: the seeker's latency has median 14 s once one speaker's messages in a row are merged."""
    import types

    from crs_jax.data import redial

    parsed = redial.parse(data_dir / "redial", types.SimpleNamespace(on_error="raise"), tmp_path)
    model = EngagementModel.fit(parsed.train)
    gaps = [
        r.after[0].seconds - r.proposal[-1].seconds
        for talk in parsed.train
        for r in reactions(talk)
        if r.after and None not in (r.after[0].seconds, r.proposal[-1].seconds)
    ]
    assert np.median(gaps) == pytest.approx(14, abs=1)
    found = availability(parsed.train, model)
    assert found["dwell"] == len(gaps)
    assert found["turns"] == found["continuation"] > found["length"] > found["dwell"] > found["uptake"] > 10_000
