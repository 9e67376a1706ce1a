"""Logged dwell times and clicks: both forms of the file, what is wrong with a line, and what engagement makes of it."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.runtime.errors import InputError
from crs_jax.signals.engagement import EngagementModel
from crs_jax.signals.feedback_log import Logged, matched, read_log


def talk(number: int) -> Dialogue:
    turns = (
        Turn(SEEKER, "hello", (), 0.0),
        Turn(RECOMMENDER, "try " + MENTION + " now" * number, ("a",), 5.0),
        Turn(SEEKER, "fine", (), 20.0),
        Turn(RECOMMENDER, "bye", (), 25.0),
    )
    return Dialogue(str(number), turns)


DIALOGUES = [talk(number) for number in range(8)]


def test_csv_and_jsonl_say_the_same(tmp_path):
    (tmp_path / "log.csv").write_text(
        "turn,dialogue,dwell,clicks,page\n1,0,12.5,2,x\n3,0,,,y\n1,b c,3,,z\n", encoding="utf-8"
    )
    lines = [
        {"dialogue": 0, "turn": 1, "dwell": 12.5, "clicks": 2, "page": {}},
        {"dialogue": "0", "turn": 3, "dwell": None},
        {"dialogue": "b c", "turn": 1, "dwell": 3},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    expected = {("0", 1): Logged(12.5, 2.0), ("0", 3): Logged(), ("b c", 1): Logged(3.0, None)}
    assert read_log(tmp_path / "log.csv") == read_log(tmp_path / "log.jsonl") == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "x", "neither .csv nor .jsonl"),
        ("a.csv", "", "line 1: has no column dialogue"),
        ("a.csv", "dialogue,dwell\n1,2\n", "line 1: has no column turn"),
        ("a.csv", "dialogue,turn\n", "holds no line"),
        ("a.csv", 'dialogue,"tu"rn\n1,2\n', "line 1: "),
        ("a.jsonl", '{"dialogue": 1, "turn": 1, "dwell": 1' + "0" * 400 + "}\n", "line 1: dwell is 1"),
        ("a.csv", "dialogue,turn,dwell\n1,0,soon\n", "line 2: dwell is 'soon'"),
        ("a.csv", "dialogue,turn,dwell\n1,0,-1\n", "line 2: dwell is '-1', expected a number of at least 0"),
        ("a.csv", "dialogue,turn,clicks\n1,0,inf\n", "line 2: clicks is 'inf'"),
        ("a.csv", "dialogue,turn\n1,-1\n", "line 2: turn is '-1'"),
        ("a.csv", "dialogue,turn\n,1\n", "line 2: dialogue is ''"),
        ("a.jsonl", '{"dialogue": 1, "turn": 0}\n{"dialogue": "1", "turn": 0}\n', "line 2: turn 0 of dialogue '1' was"),
        ("a.jsonl", '{"dialogue": 1, "turn": 0}\n{"dialogue"', "line 2: is no JSON"),
        ("a.jsonl", "[1]\n", "line 1: is no object"),
        ("a.jsonl", '{"dialogue": 1, "turn": 1.5}\n', "line 1: turn is 1.5"),
        ("a.jsonl", '{"dialogue": true, "turn": 1}\n', "line 1: dialogue is True"),
        ("a.jsonl", '{"dialogue": 1, "turn": 1, "dwell": true}\n', "line 1: dwell is True"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_log(tmp_path / name)
    assert said in str(raised.value)
    assert name in str(raised.value)


def test_a_missing_file_and_other_bytes(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"dialogue,turn\n\xff,1\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_log(tmp_path / "bytes.csv")


@given(st.binary(max_size=80), st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_in_a_log_or_a_clear_error(tmp_path_factory, content, kind):
    path = tmp_path_factory.mktemp("fuzz") / f"log.{kind}"
    path.write_bytes(content)
    try:
        found = read_log(path)
    except InputError as error:
        found, said = {}, str(error)
    assert found or str(path) in said


def test_lines_of_other_dialogues_are_left_and_of_wrong_turns_refused():
    assert matched({("3", 1): Logged(1.0), ("elsewhere", 9): Logged(1.0)}, DIALOGUES) == 1
    for turn in (0, 4):
        with pytest.raises(InputError, match=f"turn {turn} of dialogue '3' is no recommender's message"):
            matched({("3", turn): Logged(1.0)}, DIALOGUES)


def test_dwell_is_what_was_logged_less_reading_and_clicks_join_the_score():
    """Against a regression on the logged lines alone; messages without a line have neither part."""
    rng = np.random.default_rng(0)
    log = {(str(n), 1): Logged(float(rng.uniform(1, 60)), float(n % 3)) for n in range(6)}
    model = EngagementModel.fit(DIALOGUES, None, log)
    parts = model.parts(DIALOGUES)
    x = np.array([[1.0, math.log(1 + 2 + n)] for n in range(6)])  # "try", the title, n times "now"
    y = np.array([math.log(1 + log[str(n), 1].dwell) for n in range(6)])
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose([parts["dwell"][n][1] for n in range(6)], left, atol=1e-5)
    np.testing.assert_allclose([parts["clicks"][n][1] for n in range(6)], np.log1p([0, 1, 2] * 2), rtol=1e-6)
    assert all(np.isnan(parts[part][n][1]) for part in ("dwell", "clicks") for n in (6, 7))
    assert all(np.isnan(parts[part][n][3]) for part in ("dwell", "clicks") for n in range(8))
    without = EngagementModel.fit(DIALOGUES)
    assert np.isnan(np.concatenate(without.parts(DIALOGUES)["clicks"])).all()
    scaled, score = model.standardised(DIALOGUES), model.score(DIALOGUES)
    known = [part for part in scaled if np.isfinite(scaled[part][1][1])]
    assert {"dwell", "clicks"} <= set(known)
    assert score[1][1] == pytest.approx(np.mean([scaled[part][1][1] for part in known]), abs=1e-5)


def test_a_run_of_messages_counts_as_one_and_clicks_alone_leave_the_corpus_times():
    turns = (
        Turn(SEEKER, "hello", (), 0.0), Turn(RECOMMENDER, "try " + MENTION, ("a",), 5.0),
        Turn(RECOMMENDER, "seen it?", (), 8.0), Turn(SEEKER, "no", (), 20.0),
    )  # fmt: skip
    dialogue = Dialogue("r", turns)
    log = {("r", 1): Logged(3.0, 2.0), ("r", 2): Logged(4.0, None)}
    parts = EngagementModel((0.0, 0.0, 0.0), {}, {}, {}, log).parts([dialogue])
    assert parts["dwell"][0][2] == pytest.approx(math.log(8))
    assert parts["clicks"][0][2] == pytest.approx(math.log(3))
    only_clicks = {("r", 1): Logged(None, 2.0)}
    parts = EngagementModel((0.0, 0.0, 0.0), {}, {}, {}, only_clicks).parts([dialogue])
    assert parts["dwell"][0][2] == pytest.approx(math.log(13))  # twelve seconds to the answer
    assert parts["clicks"][0][2] == pytest.approx(math.log(3))
