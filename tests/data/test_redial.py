import csv
import json
import random
import re
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from crs_jax.data import records, redial
from crs_jax.data.catalogue import Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Feedback
from crs_jax.data.instances import ranking_instances
from crs_jax.runtime.errors import InputError

RAISE, SKIP = (SimpleNamespace(on_error=how, revision="main") for how in ("raise", "skip"))


def record(**changes):
    value = {
        "movieMentions": {"11": "Scarface  (1983)", "50": None, "77": "Okja"},
        "respondentQuestions": {
            "11": {"suggested": 1, "seen": 0, "liked": 0},
            "22": {"suggested": 1, "seen": 1, "liked": 0},
        },
        "initiatorQuestions": {"11": {"suggested": 0, "seen": 1, "liked": 2}},
        "messages": [
            {"timeOffset": 0, "text": "I liked @11, not @50 or @999", "senderWorkerId": 7, "messageId": 1},
            {"timeOffset": 21, "text": "  ", "senderWorkerId": 8, "messageId": 2},
            {"text": f"<|rec|>@22{MENTION}!<|say|> @11 @22 x@77", "senderWorkerId": 8},
        ],
        "conversationId": "c1",
        "respondentWorkerId": 8,
        "initiatorWorkerId": 7,
    }
    return {**value, **changes}


def write(folder, train=None, test=None, movies='11,Scarface  (1983),1\n22,"Us, the Movie  (2019)",\n'):
    lines = [json.dumps(r) if isinstance(r, dict) else r for r in (train or [record()])]
    (folder / redial.TRAIN).write_text("\n".join(lines) + "\n", encoding="utf-8")
    tests = [json.dumps(r) for r in (test or [record(conversationId="c2")])]
    (folder / redial.TEST).write_text("\n".join(tests), encoding="utf-8")
    (folder / redial.MOVIES).write_text("movieId,movieName,nbMentions\n" + movies, encoding="utf-8")
    return folder


def parse_records(values, data=RAISE):
    """Without files: raw bytes or objects as train records."""
    lines = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
    raw = [records.Record(f"f:{n}", f"f:{n}", line) for n, line in enumerate(lines, 1)]
    faults = records.Faults(data.on_error)
    return redial._parse(raw, [], {"11": Item("11", "Scarface", 1983), "22": Item("22", "Us")}, {}, faults)


def test_a_record_by_hand(tmp_path):
    parsed = redial.parse(write(tmp_path), RAISE, tmp_path / "scratch")
    assert [(i.item_id, i.title, i.year) for i in parsed.catalogue.items] == [
        ("11", "Scarface", 1983),
        ("22", "Us, the Movie", 2019),
        ("77", "Okja", None),
    ]
    (dialogue,) = parsed.train
    assert (dialogue.dialogue_id, dialogue.seeker_id, dialogue.recommender_id) == ("c1", "7", "8")
    assert dialogue.source == "train_data.jsonl:1"
    first, second = dialogue.turns
    assert (first.role, first.text, first.items, first.seconds) == (
        SEEKER,
        f"I liked {MENTION}, not @50 or @999",
        ("11",),
        0.0,
    )
    assert second.role == RECOMMENDER
    assert second.text == f"<|rec|>{MENTION}!<|say|> {MENTION} {MENTION} x{MENTION}"
    assert second.items == ("22", "11", "22", "77")
    assert second.seconds is None
    assert dialogue.feedback == {"11": Feedback(0, 1, None), "22": Feedback(1, 1, 0)}
    assert [d.dialogue_id for d in parsed.test] == ["c2"]


def test_lone_surrogates_are_replaced():
    """JSON can escape half a character, which is no Unicode and no Arrow text."""
    messages = [{"text": "a \ud83d b @11", "senderWorkerId": "w\ud83d"}]
    parsed = parse_records([record(messages=messages, initiatorWorkerId="w\ud83d")])
    assert parsed.train[0].turns[0].text == f"a \ufffd b {MENTION}"
    assert parsed.train[0].seeker_id == "w\ufffd"


def test_metadata_completes_the_items(tmp_path):
    write(tmp_path)
    known = {
        "name": "Okja (2017)",
        "genre": ["Drama"],
        "plot": " A pig. ",
        "director": ["B"],
        "writer": ["A", "B"],
        "star": ["C"],
    }
    (tmp_path / redial.METADATA).write_text(json.dumps({"77": known, "5": known}))
    items = redial.parse(tmp_path, RAISE, tmp_path / "scratch").catalogue.items
    assert items[2] == Item("77", "Okja", 2017, ("drama",), ("B", "A", "C"), "A pig.")
    assert len(items) == 3


def test_empty_lists_for_objects():
    parsed = parse_records([record(movieMentions=[], respondentQuestions=[], initiatorQuestions=[])])
    assert parsed.train[0].feedback == {}
    assert parsed.train[0].turns[1].items == ("22", "11", "22")  # 77 stood in movieMentions alone


@pytest.mark.parametrize(
    ("name", "title", "year"),
    [
        ("Scarface  (1983)", "Scarface", 1983),
        ("The Mummy ", "The Mummy", None),
        ("2012 (2009)", "2012", 2009),
        ("(1984)", "(1984)", None),
        ("Zodiac (film)", "Zodiac (film)", None),
        ("We, the Women (1953)", "We, the Women", 1953),
    ],
)
def test_title_and_year(name, title, year):
    assert redial.split_year(name) == (title, year)


BROKEN = {
    "not one complete JSON value": json.dumps(record())[:300],
    "field 'messages' is missing": {k: v for k, v in record().items() if k != "messages"},
    "field 'messages': found null, expected a list": record(messages=None),
    "field 'messages[0].text': found number 3, expected text": record(messages=[{"text": 3, "senderWorkerId": 7}]),
    "field 'messages[0].senderWorkerId': found '9', expected '7' or '8'": record(
        messages=[{"text": "a", "senderWorkerId": 9}]
    ),
    "field 'messages': found no message with text": record(messages=[{"text": " ", "senderWorkerId": 7}]),
    "field 'messages[0].timeOffset': found number -1": record(
        messages=[{"text": "a", "senderWorkerId": 7, "timeOffset": -1}]
    ),
    "field 'respondentWorkerId': found '7'": record(respondentWorkerId=7),
    "field 'initiatorWorkerId': found true/false True": record(initiatorWorkerId=True),
    "field 'initiatorQuestions.11.liked': found number 3": record(initiatorQuestions={"11": {"liked": 3}}),
    "field 'movieMentions.11': found number 4, expected text": record(movieMentions={"11": 4}),
    "dialogue id 'c0' stands in train_data.jsonl:1 too": record(conversationId="c0"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_malformed_record_is_named_or_skipped(tmp_path, message):
    write(tmp_path, train=[record(conversationId="c0"), "", BROKEN[message]])
    with pytest.raises(InputError) as error:
        redial.parse(tmp_path, RAISE, tmp_path / "scratch")
    assert str(error.value).startswith(f"{tmp_path / redial.TRAIN}:3: {message}")
    assert "\n" not in str(error.value)
    assert "config.data.on_error=skip" in str(error.value)
    parsed = redial.parse(tmp_path, SKIP, tmp_path / "scratch2")
    assert [d.dialogue_id for d in parsed.train] == ["c0"]
    assert len(parsed.skipped) == 1
    assert message in parsed.skipped[0]


def test_bytes_that_are_not_utf8(tmp_path):
    write(tmp_path)
    with (tmp_path / redial.TRAIN).open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"train_data.jsonl:2: byte 0xe9 at column 14 is not UTF-8"):
        redial.parse(tmp_path, RAISE, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("movies", "message"),
    [
        ("x,Okja,1\n", r"movies_with_mentions.csv:2: field 'movieId': found \['x'\]"),
        ("5,A,1\n5,B,1\n", r"movies_with_mentions.csv:3: field 'movieId': 5 stands twice"),
    ],
)
def test_a_malformed_movie_list(tmp_path, movies, message):
    with pytest.raises(InputError, match=message):
        redial.parse(write(tmp_path, movies=movies), RAISE, tmp_path / "scratch")


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match=r"no file 'train_data.jsonl'"):
        redial.files(tmp_path, RAISE)
    write(tmp_path)
    (tmp_path / redial.TEST).write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        redial.parse(tmp_path, RAISE, tmp_path / "scratch")


def test_hub_layout(tmp_path):
    """Lists of objects with a movieId, as the hub's copy has them, through `datasets.load_dataset`."""
    answers = [{"movieId": "11", "suggested": 0, "seen": 1, "liked": 2}]
    value = record(
        movieMentions=[{"movieId": "11", "movieName": "Scarface  (1983)"}, {"movieId": "22", "movieName": "Us (2019)"}],
        initiatorQuestions=answers,
        respondentQuestions=answers,
    )
    hub = tmp_path / "hub"
    hub.mkdir()
    for split, name in (("train", "c1"), ("test", "c2")):
        (hub / f"{split}.jsonl").write_text(json.dumps({**value, "conversationId": name}) + "\n")
    parsed = redial.parse_hub(str(hub), RAISE, tmp_path / "scratch")
    assert [i.name for i in parsed.catalogue.items] == ["Scarface (1983)", "Us (2019)"]
    assert parsed.train[0].turns[1].items == ("22", "11", "22")
    assert parsed.train[0].feedback == {"11": Feedback(0, 1, None)}
    assert [d.dialogue_id for d in parsed.test] == ["c2"]
    with pytest.raises(InputError, match=r"config.data.hub='no/such'"):
        redial.parse_hub("no/such", RAISE, tmp_path / "scratch")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", MENTION, "@11"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def damaged(value, chosen, replacement):
    """A copy with one value, at any depth, replaced or (`...`) removed."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    copy = json.loads(json.dumps(value))
    walk(copy)
    node, key = places[chosen % len(places)]
    if replacement is ...:
        del node[key]
    else:
        node[key] = replacement
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chosen=st.integers(0, 10**6), replacement=JSON | st.just(...))
def test_fuzz_one_field(chosen, replacement):
    """Any damage to one field is read, or refused in one line; with skip it never stops the rest."""
    bad = damaged(record(conversationId="bad"), chosen, replacement)
    parsed = parse_records([record(), bad], SKIP)
    assert len(parsed.train) + len(parsed.skipped) == 2
    for dialogue in parsed.train:
        parsed.catalogue.rows(i for t in dialogue.turns for i in t.items)
        assert all(t.text.strip() == t.text and t.text for t in dialogue.turns)
        json.dumps([t.text for t in dialogue.turns], ensure_ascii=False).encode()  # no lone surrogate
    if parsed.skipped:
        with pytest.raises(InputError) as error:
            parse_records([record(), bad])
        assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 600), noise=st.binary(max_size=6))
@example(cut=600, noise=b"")
@example(cut=600, noise=b"}")
def test_fuzz_truncated_lines(cut, noise):
    whole = json.dumps(record()).encode()
    line = whole[: min(cut, len(whole) - 1)] + noise
    assume(line.strip() != whole)  # the noise may be what was cut
    parsed = parse_records([record(conversationId="good"), line], SKIP)
    assert len(parsed.train) == 1
    assert len(parsed.skipped) == 1


@pytest.fixture(scope="module")
def official(data_dir, tmp_path_factory):
    return redial.parse(data_dir / "redial", RAISE, tmp_path_factory.mktemp("scratch"))


@pytest.mark.data
def test_published_counts(official):
    """The checksums of the complete official test set."""
    instances = ranking_instances(official.test, official.catalogue)
    assert len(official.test) == 1342
    assert len(official.catalogue) == 6924
    targets = [t for i in instances for t in i.targets]
    assert (len(instances), len(targets), len(set(targets))) == (4198, 4975, 1631)
    fresh = [t for i in instances for t in i.fresh]
    assert (sum(bool(i.fresh) for i in instances), len(fresh), len(set(fresh))) == (3838, 4472, 1583)


@pytest.mark.data
@pytest.mark.parametrize("part", ["train", "test"])
def test_against_a_plain_reading(official, data_dir, part):
    with (data_dir / "redial" / "movies_with_mentions.csv").open(encoding="utf-8") as file:
        ids = {row["movieId"] for row in csv.DictReader(file)}
    lines = (data_dir / "redial" / f"{part}_data.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    dialogues = getattr(official, part)
    assert len(lines) == len(dialogues)
    for line, dialogue in zip(lines, dialogues, strict=True):
        raw = json.loads(line)
        said = [m for m in raw["messages"] if m["text"].strip()]
        assert len(said) == len(dialogue.turns)
        for message, turn in zip(said, dialogue.turns, strict=True):
            assert turn.render() == message["text"].strip()
            assert list(turn.items) == [i for i in re.findall(r"@(\d+)", message["text"]) if i in ids]
            assert (turn.role == SEEKER) == (message["senderWorkerId"] == raw["initiatorWorkerId"])
            assert turn.seconds == message.get("timeOffset")
        form = raw["initiatorQuestions"] or {}
        assert {k for k in form if k in ids} <= set(dialogue.feedback)
        for movie in random.Random(0).sample(sorted(form.keys() & ids), min(1, len(form.keys() & ids))):
            answer = form[movie]["liked"]
            assert dialogue.feedback[movie].liked == (None if answer == 2 else answer)
