import json
import re
import shutil
import time

import pytest

from configs.common import get_config
from crs_jax.data import arrow, corpus, redial
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.runtime.errors import InputError


def conversation(n, recommender, text="I like @5"):
    return {
        "movieMentions": {"5": "Okja (2017)"},
        "respondentQuestions": [],
        "initiatorQuestions": {"5": {"suggested": 0, "seen": 1, "liked": 1}},
        "messages": [
            {"text": text, "senderWorkerId": 100 + n, "timeOffset": 0},
            {"text": "And @6 ?", "senderWorkerId": recommender},
        ],
        "conversationId": str(n),
        "respondentWorkerId": recommender,
        "initiatorWorkerId": 100 + n,
    }


def write(folder, train=20, test=4, bad=False):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(conversation(n, n % 7)) for n in range(train)] + (["{"] if bad else [])
    (folder / redial.TRAIN).write_text("\n".join(lines) + "\n")
    (folder / redial.TEST).write_text("".join(json.dumps(conversation(50 + n, 9)) + "\n" for n in range(test)))
    (folder / redial.MOVIES).write_text("movieId,movieName,nbMentions\n5,Okja (2017),1\n6,Up,2\n")
    return folder


@pytest.fixture
def config(tmp_path):
    c = get_config()
    c.data.dataset = "redial"
    c.data.dir = str(write(tmp_path / "raw"))
    c.data.validation_dialogues = 6
    return c


def test_load(config, tmp_path):
    loaded = corpus.load(config, tmp_path)
    assert loaded.name == "redial"
    assert loaded.folder == tmp_path / "raw"
    assert (len(loaded.train) + len(loaded.validation), len(loaded.test), loaded.skipped) == (20, 4, ())
    assert 0 < len(loaded.validation) <= 6
    assert not {d.recommender_id for d in loaded.train} & {d.recommender_id for d in loaded.validation}
    assert [i.name for i in loaded.catalogue.items] == ["Okja (2017)", "Up"]
    first = loaded.test[0]
    assert first.turns == (
        Turn(SEEKER, f"I like {MENTION}", ("5",), 0.0),
        Turn(RECOMMENDER, f"And {MENTION} ?", ("6",)),
    )
    assert first.feedback == {"5": Feedback(0, 1, 1)}
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []


def test_the_second_load_reads_the_cache_alone(config, tmp_path, monkeypatch):
    first = corpus.load(config, tmp_path)
    monkeypatch.setattr(redial, "parse", None)
    assert corpus.load(config, tmp_path) == first
    config.data.cache_dir = str(tmp_path / "elsewhere")
    with pytest.raises(TypeError):
        corpus.load(config, tmp_path)


@pytest.mark.parametrize("change", ["content", "seed", "validation", "code"])
def test_what_makes_a_new_fingerprint(config, tmp_path, monkeypatch, change):
    first = corpus.load(config, tmp_path)
    if change == "content":
        path = tmp_path / "raw" / redial.TEST
        path.write_text(path.read_text().replace("I like", "I love"))
    elif change == "seed":
        config.seed = 1
    elif change == "validation":
        config.data.validation_dialogues = 3
    else:
        monkeypatch.setattr(arrow, "VERSION", 99)
    second = corpus.load(config, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    if change == "content":
        assert second.test[0].turns[0].text == f"I love {MENTION}"
    if change == "code":
        assert second == first


def test_no_validation(config, tmp_path, monkeypatch):
    config.data.validation_dialogues = 0
    first = corpus.load(config, tmp_path)
    assert (len(first.train), first.validation) == (20, ())
    monkeypatch.setattr(redial, "parse", None)
    assert corpus.load(config, tmp_path) == first


def test_subsets_come_from_one_cache(config, tmp_path):
    whole = corpus.load(config, tmp_path)
    config.data.max_train_dialogues, config.data.max_eval_dialogues = 5, 2
    part = corpus.load(config, tmp_path)
    assert (len(part.train), len(part.validation), len(part.test)) == (5, 2, 2)
    assert {d.dialogue_id for d in part.train} <= {d.dialogue_id for d in whole.train}
    assert part == corpus.load(config, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["table", "facts", "catalogue"])
def test_a_damaged_cache_is_made_anew(config, tmp_path, damage):
    first = corpus.load(config, tmp_path)
    (prepared,) = (tmp_path / "cache").iterdir()
    if damage == "table":
        next((prepared / "train").glob("*.arrow")).write_bytes(b"no table")
    elif damage == "facts":
        (prepared / "facts.json").write_text("{")
    else:
        shutil.rmtree(prepared / "catalogue")
    assert corpus.load(config, tmp_path) == first
    assert corpus.load(config, tmp_path) == first


def test_skipped_records_are_listed_from_the_cache_too(config, tmp_path):
    write(tmp_path / "raw", bad=True)
    with pytest.raises(InputError, match=r"train_data.jsonl:21: not one complete JSON value"):
        corpus.load(config, tmp_path)
    config.data.on_error = "skip"
    first = corpus.load(config, tmp_path)
    assert len(first.skipped) == 1
    assert "train_data.jsonl:21" in first.skipped[0]
    assert corpus.load(config, tmp_path) == first


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset", "netflix", "config.data.dataset is 'netflix': set it to one of simulated, redial"),
        ("on_error", "ignore", "config.data.on_error is 'ignore'"),
        ("dir", "/no/such", "config.data.dir='/no/such': no such folder"),
        ("validation_dialogues", 20, "leaves nothing to train on"),
    ],
)
def test_bad_settings(config, tmp_path, field, value, message):
    config.data[field] = value
    with pytest.raises(InputError, match=re.escape(message)):
        corpus.load(config, tmp_path)


def test_a_corpus_without_a_hub_needs_a_folder(config, tmp_path):
    config.data.dataset, config.data.dir = "inspired", ""
    with pytest.raises(InputError, match=r"config.data.dir is empty: give the folder that holds inspired's files"):
        corpus.load(config, tmp_path)


def test_arrow_keeps_every_field(tmp_path):
    """Odd characters, empty tuples, unknown times and answers."""
    odd = "a\u2028b\x85c\x00d\n𝔘 <|rec|> \\u0000"
    items = (Item("1", odd, None, (), ("é",), odd), Item("2", "x", 1999, ("g", "h")))
    dialogues = (
        Dialogue(
            "d", (Turn(SEEKER, odd + MENTION * 2, ("2", "1"), 0.5), Turn(RECOMMENDER, "x")), {"1": Feedback(1, None, 0)}
        ),
        Dialogue("e", (Turn(SEEKER, "y"),), {}, "s", "r", "f:1"),
    )
    parts = {"train": dialogues, "validation": (), "test": dialogues[1:]}
    arrow.save(tmp_path / "c", Catalogue(items), parts, {"skipped": [odd]})
    catalogue, loaded, facts = arrow.load(tmp_path / "c")
    assert catalogue == Catalogue(items)
    assert loaded == parts
    assert facts == {"skipped": [odd]}
    arrow.save(tmp_path / "c", Catalogue(items[:1]), parts, {})  # the first writer wins
    assert arrow.load(tmp_path / "c")[0] == catalogue
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_simulated(tmp_path):
    c = get_config()
    c.simulator.catalogue_size, c.simulator.train_dialogues, c.simulator.test_dialogues = 40, 40, 10
    c.data.validation_dialogues = 10
    loaded = corpus.load(c, tmp_path)
    assert loaded.folder == tmp_path / "data"
    assert len(loaded.catalogue) == 40
    assert len(loaded.test) == 10
    assert len(loaded.train) + len(loaded.validation) <= 40
    assert loaded.train
    assert loaded.validation
    assert (loaded.folder / "truth.npz").is_file()
    assert corpus.load(c, tmp_path) == loaded


@pytest.mark.data
def test_redial_split(data_dir, tmp_path):
    """About 400 dialogues by recommenders of their own, no person shared, most of train kept; the cache is fast."""
    c = get_config()
    c.data.dataset, c.data.dir, c.data.validation_dialogues = "redial", str(data_dir / "redial"), 400
    loaded = corpus.load(c, tmp_path)
    assert 390 <= len(loaded.validation) <= 400
    assert len(loaded.train) > 3000
    assert not {d.recommender_id for d in loaded.train} & {d.recommender_id for d in loaded.validation}
    assert not {d.seeker_id for d in loaded.train} & {d.seeker_id for d in loaded.validation}
    persons = {p for d in loaded.train for p in (d.seeker_id, d.recommender_id)}
    assert not persons & {p for d in loaded.test for p in (d.seeker_id, d.recommender_id)}
    begun = time.perf_counter()
    again = corpus.load(c, tmp_path)
    assert time.perf_counter() - begun < 10
    assert again == loaded


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "domain"), [("opendialkg", "movies"), ("opendialkg", "books"), ("inspired", "movies")]
)
def test_no_dialogue_or_opening_on_two_sides(data_dir, tmp_path, dataset, domain):
    c = get_config()
    c.data.dataset, c.data.domain, c.data.dir = dataset, domain, str(data_dir / dataset)
    c.data.validation_dialogues = 80
    loaded = corpus.load(c, tmp_path)
    parts = [loaded.train, loaded.validation, loaded.test]
    assert len(loaded.validation) == 80
    whole = [{tuple(t.render() for t in d.turns) for d in part} for part in parts]
    ids = [{d.dialogue_id for d in part} for part in parts]
    sides = [whole, ids]
    if dataset == "opendialkg":
        sides.append([{d.turns[0].render().lower() for d in part} for part in parts])
    for train, validation, test in sides:
        assert not train & validation
        assert not train & test
        assert not validation & test
    rows = [loaded.catalogue.rows(i for d in part for t in d.turns for i in t.items) for part in parts]
    assert all(rows)
    assert corpus.load(c, tmp_path) == loaded
