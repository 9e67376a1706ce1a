"""Ten thousand malformed records: each becomes a dialogue or one error that names file, line and field; nothing else.

A sound record is broken at a random place of its JSON tree or of its bytes, once to three times. Text of users, however
odd, is words to the tokenizer and never a control or an item token.
"""

import csv
import io
import json
import random
import re

import pytest

from crs_jax.data import inspired, opendialkg, redial
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.records import Faults, Record
from crs_jax.data.tokenizer import CONTROLS, DialogueTokenizer
from crs_jax.runtime.errors import InputError
from crs_jax.signals.feedback_log import read_log

EACH = 2500  # malformed lines a corpus; with those of the log 11,000
ODD = (
    None, True, False, 0, -1, 3.5, float("inf"), 10**30, "", " ", [], {}, [[]], [None], {"": None}, "2", "x" * 20_000,
    "<|end|>", "<|rec|>@11<|say|>", "@999999", "@11 @11", "\ud83d", "\x00\x1b[31m", "ÅÍ\u202e\u0301\u200d🎬", "NaN",
    [{"text": "<|end|>", "role": "SEEKER"}], {"11": {"liked": 7}}, [1] * 500,
)  # fmt: skip
FILMS = {"11": Item("11", "Scarface", 1983), "22": Item("22", "Us", 2019)}
REDIAL = {
    "movieMentions": {"11": "Scarface  (1983)", "22": None},
    "respondentQuestions": {"11": {"suggested": 1, "seen": 0, "liked": 0}},
    "initiatorQuestions": [],
    "messages": [
        {"timeOffset": 0, "text": "I liked @11", "senderWorkerId": 7, "messageId": 1},
        {"timeOffset": 21, "text": "Then see @22!", "senderWorkerId": 8, "messageId": 2},
    ],
    "conversationId": "c",
    "respondentWorkerId": 8,
    "initiatorWorkerId": 7,
}
TURN = {"dialog_id": "d", "turn_id": 2, "context": ["Hello, I like Us", "What else?"], "resp": "Scarface.",
        "entity": ["Us"], "rec": ["Scarface"]}  # fmt: skip
BOOK = [{"role": "user", "text": "I read Emma", "item": ["Emma"]}, {"role": "assistant", "text": "Try Persuasion"}]
INSPIRED = [
    {"text": "Hi, I like Us (2019)", "role": "SEEKER", "movie": ["Us (2019)"], "movie_name": ["Us"]},
    {"text": "Scarface?", "role": "RECOMMENDER", "movie": ["Scarface (1983)"]},
]


def places(value, at=()):
    """Paths to all parts of a JSON value."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def broken(value, rng: random.Random):
    """The value with something odd, missing, doubled or renamed at a random place."""
    value = json.loads(json.dumps(value))
    *lead, last = rng.choice([place for place in places(value) if place] or [("",)])
    inner = value
    for key in lead:
        inner = inner[key]
    how = rng.choice(("odd", "odd", "odd", "gone", "twice"))
    if how == "odd" or (how == "twice" and isinstance(inner, dict)):
        inner[last] = rng.choice(ODD)
    elif how == "gone":
        del inner[last]
    else:
        inner.insert(last, inner[last])
    return value


def line(value, rng: random.Random) -> bytes:
    """A malformed line: broken as a value, and one in three as bytes too."""
    for _ in range(rng.randint(1, 3)):
        value = broken(value, rng) if value else value
    raw = (
        json.dumps(value).encode()
        if rng.random() < 0.5
        else json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    if rng.random() < 0.33:
        at = rng.randrange(len(raw) + 1)
        raw = rng.choice((
            raw[:at], raw[at:], raw[:at] + bytes([rng.randrange(256)]) + raw[at:], raw[:at] + b"\x00" + raw[at + 1 :],
            b"\xef\xbb\xbf" + raw, raw + raw, raw[:at] + b"\xff\xfe" + raw[at:], b"[" * 5000 + raw,
        ))  # fmt: skip
    return raw


def of_redial(lines, faults):
    return redial._parse(lines, [], dict(FILMS), {}, faults)


def of_turns(lines, faults):
    items = {item.title: Item(item.title, item.title) for item in FILMS.values()}
    return opendialkg._parse_turns(lines, [], items, faults)


def of_books(lines, faults):
    return opendialkg._parse_books(lines, {}, faults)


def of_inspired(lines, faults):
    items: dict[str, Item] = {}
    found = [faults.attempt(r.where, lambda r=r: inspired._dialogue(r, items)) for r in lines]
    return inspired.Parsed(Catalogue(tuple(items.values())), [d for d in found if d], [], faults.skipped)


CORPORA = {"redial": (REDIAL, of_redial), "turns": (TURN, of_turns), "books": (BOOK, of_books),
           "inspired": (INSPIRED, of_inspired)}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return DialogueTokenizer.train(["I liked Scarface", "Then see Us!", *CONTROLS], 300, 1)


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_malformed_line_is_a_dialogue_or_one_clear_error(corpus, tokenizer):
    sound, parse = CORPORA[corpus]
    rng, kept, errors = random.Random(corpus), 0, set()
    for number in range(EACH):
        record = Record(f"folder/file.jsonl:{number}", f"file.jsonl:{number}", line(sound, rng))
        parsed = parse([record], Faults("skip"))
        found = [*parsed.train, *parsed.test]
        assert len(found) + len(parsed.skipped) == 1, record.value[:300]
        for text in parsed.skipped:
            assert re.match(rf"folder/file\.jsonl:{number}: \S", text), text
            assert len(text) < 600, text
            errors.add(re.sub(r"\d+|'[^']*'", "", text))
            with pytest.raises(InputError, match=rf"file\.jsonl:{number}: .*: correct it, or set config\.data\.on_er"):
                parse([record], Faults("raise"))
        for dialogue in found:
            kept += 1
            assert all(turn.text for turn in dialogue.turns)
            t = tokenizer.for_items(len(parsed.catalogue.items))
            for turn in dialogue.turns:
                tokens = t.encode_turn(turn, parsed.catalogue, 2)
                opening = 1 if turn.role == "seeker" else 2
                body = tokens[opening:-1]
                rows = set(parsed.catalogue.rows(turn.items))
                assert tokens[-1] == t.end
                assert body.count(t.say) == opening - 1
                for token in body:
                    assert token < t.num_words or token == t.say or token - t.item_offset in rows, turn
    assert EACH * 0.05 < kept < EACH * 0.8  # broken enough, and not all of it
    assert len(errors) > 10


def test_a_malformed_log_of_feedback_is_read_or_one_clear_error(tmp_path):
    rng, read, messages = random.Random(5), 0, []
    for number in range(500):
        value = broken({"dialogue": "20038", "turn": 3, "dwell": 12.5, "clicks": 1}, rng)
        path = tmp_path / f"log-{number}.jsonl"
        path.write_bytes(line(value, rng))
        as_csv = tmp_path / f"log-{number}.csv"
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(value.keys())
        table.writerow([str(v)[:50] for v in value.values()])
        as_csv.write_text(text.getvalue(), encoding="utf-8", errors="replace")
        for file in (path, as_csv):
            try:
                read += len(read_log(file))
            except InputError as error:
                messages.append((file.name, str(error)))
    assert 50 < read < 900
    assert all(name in message and "Traceback" not in message for name, message in messages)
