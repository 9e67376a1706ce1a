import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_jax.data import inspired
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER
from crs_jax.runtime.errors import InputError

RAISE, SKIP = SimpleNamespace(on_error="raise"), SimpleNamespace(on_error="skip")


def turn(role, text, movie=(), movie_name=()):
    return {"role": role, "text": text, "movie": list(movie), "movie_name": list(movie_name)}


TRAIN = [
    turn(
        "RECOMMENDER",
        "I saw Knives Out and joker (2019)",
        ["Knives Out (2019)", "Joker (2019)"],
        ["Knives Out", "Joker"],
    ),
    turn("SEEKER", ""),
    turn("SEEKER", "I am the misses lol <|rec|>", ["I Am Michael (2015)"], ["I Am Michael"]),
    turn("RECOMMENDER", "See the Rise of Skywalker", ["Star Wars: The Rise of Skywalker (2019)", ""], []),
]
DEV = [turn("SEEKER", "akira?", ["Akira ()"])]


def write(folder, train=(TRAIN,), dev=(DEV,)):
    for name, dialogues in ((inspired.TRAIN, train), (inspired.TEST, dev)):
        (folder / name).write_text("".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in dialogues))
    return folder


def test_by_hand(tmp_path):
    parsed = inspired.parse(write(tmp_path), RAISE, tmp_path / "scratch")
    assert [(i.item_id, i.title, i.year) for i in parsed.catalogue.items] == [
        ("Knives Out (2019)", "Knives Out", 2019),
        ("Joker (2019)", "Joker", 2019),
        ("I Am Michael (2015)", "I Am Michael", 2015),
        ("Star Wars: The Rise of Skywalker (2019)", "Star Wars: The Rise of Skywalker", 2019),
        ("Akira ()", "Akira", None),
    ]
    (dialogue,) = parsed.train
    assert [(t.role, t.text, t.items) for t in dialogue.turns] == [
        (RECOMMENDER, f"I saw {MENTION} and {MENTION}", ("Knives Out (2019)", "Joker (2019)")),
        (SEEKER, "I am the misses lol <|rec|>", ()),
        (RECOMMENDER, f"See {MENTION}", ("Star Wars: The Rise of Skywalker (2019)",)),
    ]
    assert parsed.test[0].turns[0].items == ("Akira ()",)
    assert parsed.test[0].dialogue_id == "dev.jsonl:1"


@pytest.mark.parametrize(
    ("name", "title", "year"),
    [
        ("Joker (2019)", "Joker", 2019),
        ("Akira ()", "Akira", None),
        ("Outbreak (1995", "Outbreak", 1995),
        ("The Witch (2015 film)", "The Witch", 2015),
        ("Dirty Dancing (2017 film", "Dirty Dancing", 2017),
        ("Airplane!", "Airplane!", None),
        ("(2019)", "(2019)", None),
        ("", "", None),
    ],
)
def test_title_and_year(name, title, year):
    assert inspired.split_year(name) == (title, year)


BROKEN = {
    "found an object {}, expected a list": {},
    "field '[0].role': found 'USER', expected SEEKER or RECOMMENDER": [turn("USER", "hi")],
    "field '[1].text': found null, expected text": [turn("SEEKER", "hi"), turn("SEEKER", None)],
    "field '[0].movie': found number 4, expected text": [turn("SEEKER", "hi", [4])],
    "field '[0]': found text 'hi', expected an object": ["hi"],
    "found no message with text": [],
    "not one complete JSON value": json.dumps(TRAIN)[:-3],
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_malformed_line_is_named_or_skipped(tmp_path, message):
    write(tmp_path, [TRAIN, BROKEN[message]])
    with pytest.raises(InputError) as error:
        inspired.parse(tmp_path, RAISE, tmp_path / "scratch")
    assert str(error.value).startswith(f"{tmp_path / 'train.jsonl'}:2: {message}")
    parsed = inspired.parse(tmp_path, SKIP, tmp_path / "scratch2")
    assert (len(parsed.train), len(parsed.skipped)) == (1, 1)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no file 'train.jsonl'"):
        inspired.files(tmp_path, RAISE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "role", "movie"]), inner),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.sampled_from(["text", "role", "movie", "movie_name"]), JSON)
def test_fuzz(number, field, value):
    bad = [dict(t) for t in TRAIN]
    bad[number][field] = value
    faults = inspired.Faults("skip")
    items = {}
    for dialogue in (TRAIN, bad):
        record = inspired.Record("f:1", "f:1", json.dumps(dialogue).encode())
        made = faults.attempt("f:1", lambda record=record: inspired._dialogue(record, items))
        assert made is None or all(i in items for t in made.turns for i in t.items)
    assert len(faults.skipped) <= 1
    json.dumps(list(items), ensure_ascii=False).encode()


@pytest.mark.data
def test_the_public_files(data_dir, tmp_path):
    """All dialogues; all words but the titles; nine of ten annotations are found (the rest name what is not there)."""
    parsed = inspired.parse(data_dir / "inspired", RAISE, tmp_path)
    assert (len(parsed.train), len(parsed.test)) == (801, 99)
    assert parsed.skipped == []
    annotated = found = 0
    for name, dialogues in ((inspired.TRAIN, parsed.train), (inspired.TEST, parsed.test)):
        lines = (data_dir / "inspired" / name).read_text(encoding="utf-8").split("\n")[:-1]
        for line, dialogue in zip(lines, dialogues, strict=True):
            for raw, turn in zip(json.loads(line), dialogue.turns, strict=True):
                assert turn.role == raw["role"].lower()
                assert all(piece in raw["text"] for piece in turn.text.split(MENTION))
                assert set(turn.items) <= set(map(str.strip, raw["movie"]))
                annotated += len(set(filter(None, raw["movie"])))
                found += len(turn.distinct_items)
    assert found / annotated > 0.9
