import csv
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_jax.data import opendialkg, records
from crs_jax.data.catalogue import Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER
from crs_jax.runtime.errors import InputError


def data(on_error="raise", domain="movies"):
    return SimpleNamespace(on_error=on_error, domain=domain, revision="main")


ITEMS = {
    "0": {
        "name": "Heat",
        "year": "1995",
        "genre": ["Crime", "Crime"],
        "actor": ["Al", "Bo", "Al"],
        "director": ["Mann"],
    },
    "1": {"name": "Alien", "year": None},
    "2": {"name": "Crime"},
    "3": {"name": "The Great Gatsby (Award-Winning Work)", "writer": ["F"], "year": "197"},
}
SAID = ["I saw Heat", "Then see alien", "More crime Crime like Alien?", "The great gatsby, not Heat"]


def row(turn, rec, entity=(), dialog=4, said=SAID):
    return {
        "dialog_id": dialog,
        "turn_id": turn,
        "context": said[:turn],
        "entity": list(entity),
        "rec": list(rec),
        "resp": said[turn],
    }


FIRST = row(1, ["Alien"], ["Heat"])
SECOND = row(3, ["The Great Gatsby (Award-Winning Work)"], ["Heat", "Crime", "Alien", "Al"])
OTHER = row(1, ["Heat"], dialog=9, said=["Hi", "Heat"])


def write(folder, train, valid):
    (folder / opendialkg.ITEMS).write_text(json.dumps(ITEMS))
    for name, rows in ((opendialkg.TRAIN, train), (opendialkg.TEST, valid)):
        (folder / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return folder


def test_turns_are_put_together(tmp_path):
    """Rows of one dialogue on both sides become one dialogue of test, of the longest context."""
    parsed = opendialkg.parse(write(tmp_path, [SECOND, OTHER], [FIRST]), data(), tmp_path / "scratch")
    (dialogue,) = parsed.test
    assert (dialogue.dialogue_id, dialogue.source) == ("4", "train.jsonl:1")
    assert [t.role for t in dialogue.turns] == [SEEKER, RECOMMENDER, SEEKER, RECOMMENDER]
    m = MENTION
    assert [t.text for t in dialogue.turns] == [
        f"I saw {m}",
        f"Then see {m}",
        f"More crime Crime like {m}?",
        f"{m}, not {m}",
    ]
    assert [t.items for t in dialogue.turns] == [("0",), ("1",), ("1",), ("3", "0")]
    assert [d.dialogue_id for d in parsed.train] == ["9"]
    assert parsed.catalogue.items[0] == Item("0", "Heat", 1995, ("crime",), ("Mann", "Al", "Bo"))
    assert parsed.catalogue.items[3].year is None
    assert len(parsed.catalogue) == 4


def test_the_assistant_may_speak_first(tmp_path):
    even = row(2, ["Alien"], said=["Hello", "Hi", "See Alien"])
    parsed = opendialkg.parse(write(tmp_path, [even], [OTHER]), data(), tmp_path / "scratch")
    assert [t.role for t in parsed.train[0].turns] == [RECOMMENDER, SEEKER, RECOMMENDER]


def test_an_empty_message_is_dropped_without_shifting_roles(tmp_path):
    gap = row(3, ["Heat"], said=["Hello", " ", "yes", "See Heat"])
    parsed = opendialkg.parse(write(tmp_path, [gap], [OTHER]), data(), tmp_path / "scratch")
    turns = parsed.train[0].turns
    assert [(t.role, t.items) for t in turns] == [(SEEKER, ()), (SEEKER, ()), (RECOMMENDER, ("0",))]


BROKEN = {
    "field 'turn_id': found 3, expected 2": {**SECOND, "context": SAID[:2]},
    "field 'turn_id': found true/false True": {**SECOND, "turn_id": True},
    "field 'rec': found number 3, expected a list": {**SECOND, "rec": 3},
    "field 'resp' is missing": {k: v for k, v in SECOND.items() if k != "resp"},
    "field 'context': found null, expected text": {**SECOND, "context": [None]},
    "found a list [1], expected an object": [1],
    "not one complete JSON value": json.dumps(SECOND)[:50],
    "field 'dialog_id': found null": {**SECOND, "dialog_id": None},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_malformed_row_is_named_or_skipped(tmp_path, message):
    write(tmp_path, [FIRST, BROKEN[message]], [OTHER])
    with pytest.raises(InputError) as error:
        opendialkg.parse(tmp_path, data(), tmp_path / "scratch")
    assert str(error.value).startswith(f"{tmp_path / 'train.jsonl'}:2: {message}")
    parsed = opendialkg.parse(tmp_path, data("skip"), tmp_path / "scratch2")
    assert len(parsed.skipped) == 1
    assert len(parsed.train[0].turns) == 2


def test_rows_of_one_dialogue_that_disagree(tmp_path):
    other = {**FIRST, "context": ["I saw something else"]}
    with pytest.raises(InputError, match=r"train.jsonl:2: field 'context': found other messages than .* dialog_id 4"):
        opendialkg.parse(write(tmp_path, [SECOND, other], [OTHER]), data(), tmp_path / "scratch")


def path(*triples):
    return {"path": [0.5, [list(t) for t in triples], "words"]}


def messages(*more):
    return [
        {"type": "chat", "message": "Do you like Iron Man, dear?", "sender": "user"},
        {
            "type": "action",
            "action_id": "kgwalk/choose_path",
            "sender": "assistant",
            "metadata": path(("Iron Man", "starred_actors", "Bob"), ("Bob", "~starred_actors", "Zodiac (Crime Film)")),
        },
        {"type": "chat", "message": "Sure. Bob was in zodiac", "sender": "assistant"},
        {"type": "action", "action_id": "meta_thread/send_meta_message", "sender": "user"},
        *more,
    ]


SPORT = [{"type": "chat", "message": "Do you like football?", "sender": "user"}]


def write_csv(folder, *cells):
    with (folder / opendialkg.CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Messages", "User Rating", "Assistant Rating"])
        writer.writerows([c if isinstance(c, str) else json.dumps(c, indent=1), "4", "5"] for c in cells)
    return folder


def test_official_csv(tmp_path):
    """Items by the paths alone; a cell of several lines; another domain's dialogue is left out and said so."""
    parsed = opendialkg.parse(write_csv(tmp_path, messages(), SPORT), data(), tmp_path / "scratch")
    assert [(i.item_id, i.people) for i in parsed.catalogue.items] == [
        ("Iron Man", ("Bob",)),
        ("Zodiac (Crime Film)", ("Bob",)),
    ]
    (dialogue,) = parsed.train
    assert [(t.role, t.items) for t in dialogue.turns] == [
        (SEEKER, ("Iron Man",)),
        (RECOMMENDER, ("Zodiac (Crime Film)",)),
    ]
    assert dialogue.turns[1].text == f"Sure. Bob was in {MENTION}"
    assert dialogue.source == "opendialkg.csv:2"
    assert parsed.test == []
    assert parsed.notes == ("left out 1 dialogues that name none of the 2 movies",)


def test_official_csv_with_triples_and_books(tmp_path):
    more = {"type": "chat", "message": "I read Emma", "sender": "user"}
    walk = {"type": "action", "sender": "user", "metadata": path(("Emma", "has_genre", "Romance"))}
    write_csv(tmp_path, messages(walk, more))
    triples = ["Emma\twritten_by\tJane", "Emma\trelease_year\t1815", "Iron Man\thas_genre\tAction", "broken line"]
    (tmp_path / opendialkg.TRIPLES).write_text("\n".join(triples))
    books = opendialkg.parse(tmp_path, data(domain="books"), tmp_path / "scratch")
    assert books.catalogue.items == (Item("Emma", "Emma", 1815, ("romance",), ("Jane",)),)
    assert books.train[0].turns[2].items == ("Emma",)
    films = opendialkg.parse(tmp_path, data(), tmp_path / "scratch2")
    assert films.catalogue.items[0].genres == ("action",)


def test_official_csv_with_an_item_list(tmp_path):
    write_csv(
        tmp_path,
        [{"type": "action", "sender": "user", "metadata": path(("Heat", "x", "y"))}, {**SPORT[0], "message": "heat"}],
    )
    (tmp_path / opendialkg.ITEMS).write_text(json.dumps(ITEMS))
    parsed = opendialkg.parse(tmp_path, data(), tmp_path / "scratch")
    assert len(parsed.catalogue) == 4
    assert parsed.train[0].turns[0].items == ("0",)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            messages({"type": "chat", "sender": "me"}),
            "field 'Messages[4].sender': found 'me', expected user or assistant",
        ),
        (messages({"type": "chat", "sender": "user"}), "field 'Messages[4].message' is missing"),
        (
            messages({"type": "action", "sender": "user", "metadata": {"path": [1, 2]}}),
            "field 'Messages[4].metadata.path'",
        ),
        ("[{", "not one complete JSON value"),
        ([], "found no message with text"),
    ],
)
def test_a_malformed_cell_is_named_by_its_line(tmp_path, cell, message):
    write_csv(tmp_path, messages(), cell)
    line = 3 + json.dumps(messages(), indent=1).count("\n")
    with pytest.raises(InputError) as error:
        opendialkg.parse(tmp_path, data(), tmp_path / "scratch")
    assert str(error.value).startswith(f"{tmp_path / 'opendialkg.csv'}:{line}: {message}")
    assert len(opendialkg.parse(tmp_path, data("skip"), tmp_path / "scratch2").skipped) == 1


def test_another_csv_is_refused(tmp_path):
    (tmp_path / opendialkg.CSV).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"opendialkg.csv:1: found columns \['a', 'b'\], expected a column 'Messages'"):
        opendialkg.parse(tmp_path, data(), tmp_path / "scratch")


def test_hub(tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    write_csv(hub, messages())
    (hub / opendialkg.CSV).rename(hub / "train.csv")
    parsed = opendialkg.parse_hub(str(hub), data(), tmp_path / "scratch")
    assert [t.items for t in parsed.train[0].turns] == [("Iron Man",), ("Zodiac (Crime Film)",)]


def book_turn(role, text, *items):
    return {"role": role, "text": text, "entity": list(items), "item": list(items)}


def test_books(tmp_path):
    lines = [
        [
            book_turn("user", "books like emma?", "Emma"),
            book_turn("assistant", "Persuasion, a Drama", "Persuasion", "Drama"),
        ],
        [book_turn("user", "Emma again"), book_turn("assistant", "Emma", "Emma")],
    ]
    (tmp_path / opendialkg.BOOKS).write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / opendialkg.ITEMS).write_text(json.dumps({"0": {"name": "Heat", "genre": ["Drama"]}}))
    parsed = opendialkg.parse(tmp_path, data(domain="books"), tmp_path / "scratch")
    assert [i.title for i in parsed.catalogue.items] == ["Emma", "Persuasion", "Drama"]
    assert [[t.items for t in d.turns] for d in parsed.train] == [[("Emma",), ("Persuasion",)], [("Emma",), ("Emma",)]]


def test_unknown_domain_and_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"config.data.domain is 'sport'"):
        opendialkg.files(tmp_path, data(domain="sport"))
    with pytest.raises(InputError, match=r"found neither 'opendialkg.csv' nor 'train.jsonl'"):
        opendialkg.files(tmp_path, data())


values = (
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2)
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(SECOND)),
    values,
    st.sampled_from(["type", "message", "sender", "metadata"]),
    st.integers(0, 3),
)
def test_fuzz(field, value, column, number):
    """A damaged row or cell is read or skipped; the sound one beside it stays."""
    items = {"0": Item("0", "Heat")}

    def raw(*lines):
        return [records.Record(f"f:{n}", f"f:{n}", json.dumps(v).encode()) for n, v in enumerate(lines)]

    parsed = opendialkg._parse_turns(raw(OTHER, {**SECOND, field: value}), [], dict(items), records.Faults("skip"))
    assert len(parsed.skipped) + sum(len(d.turns) > 2 for d in parsed.train) >= 1
    assert any(len(d.turns) == 2 for d in parsed.train) or str(value) == "9"
    cell = messages()
    cell[number] = {**cell[number], column: value}
    parsed = opendialkg._parse_messages(raw(messages(), cell), {}, None, "movies", records.Faults("skip"))
    assert len(parsed.train) + len(parsed.skipped) >= 1
    assert parsed.train[0].turns[0].items == ("Iron Man",)


@pytest.mark.data
def test_the_public_files(data_dir, tmp_path):
    """Every row's messages are found again in its dialogue, and 98 % of the items it recommends in their turn."""
    folder = data_dir / "opendialkg"
    parsed = opendialkg.parse(folder, data(), tmp_path)
    assert (len(parsed.train), len(parsed.test), len(parsed.catalogue)) == (3557, 543 + 581, 3672)
    by_id = {d.dialogue_id: d for d in (*parsed.train, *parsed.test)}
    titles = {i.item_id: i.title for i in parsed.catalogue.items}
    found = total = 0
    for name in (opendialkg.TRAIN, opendialkg.TEST):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            raw = json.loads(line)
            turn = by_id[str(raw["dialog_id"])].turns[raw["turn_id"]]
            assert turn.role == RECOMMENDER
            pieces = [p for p in turn.text.split(MENTION) if p]
            assert all(p in raw["resp"] for p in pieces)
            total += len(raw["rec"])
            found += len(set(raw["rec"]) & {titles[i] for i in turn.items})
    assert total == 7147
    assert found / total > 0.98


@pytest.mark.data
def test_the_public_books(data_dir, tmp_path):
    parsed = opendialkg.parse(data_dir / "opendialkg", data(domain="books"), tmp_path)
    assert len(parsed.train) == 1901
    assert len(parsed.catalogue) == 1146
    named = sum(len(t.items) for d in parsed.train for t in d.turns)
    assert named > 0.95 * 4876 * 0.97  # 4,876 annotations, of which 'Drama' and its like are genres
