"""The simulated corpus: ReDial's format, determinism, and that what a log holds tells how well a proposal fits."""

import csv
import dataclasses
import json
import pathlib
import re
import types

import numpy as np
import pytest

from crs_jax.data import simulated, simulated_words
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.data.simulated import generate
from crs_jax.data.simulated_truth import Truth
from crs_jax.runtime.errors import InputError
from crs_jax.signals.engagement import PARTS, EngagementModel
from crs_jax.signals.sentiment import sentiment_shift

FILES = ["movies_metadata.json", "movies_with_mentions.csv", "simulator.json", "test_data.jsonl", "train_data.jsonl",
         "truth.npz"]  # fmt: skip


def sizes(items=60, train=120, test=40):
    return types.SimpleNamespace(catalogue_size=items, train_dialogues=train, test_dialogues=test)


def read(folder, part):
    return [json.loads(line) for line in (folder / f"{part}_data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The default sizes."""
    path = tmp_path_factory.mktemp("simulated")
    generate(path, sizes(120, 700, 150), seed=0)
    return path


@pytest.fixture(scope="module")
def parsed(folder, tmp_path_factory):
    redial = pytest.importorskip("crs_jax.data.redial")
    return redial.parse(folder, types.SimpleNamespace(on_error="raise"), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def proposals(folder, parsed):
    """Of train, for each message that proposes: mean true utility, and each signal of the reaction to it."""
    truth = Truth.load(folder).aligned(parsed.catalogue)
    model = EngagementModel.fit(parsed.train)
    columns = {part: model.standardised(parsed.train)[part] for part in PARTS}
    columns["engagement"] = model.score(parsed.train)
    columns["shift"] = sentiment_shift(parsed.train)
    where, utility = [], []
    for d, dialogue in enumerate(parsed.train):
        for t, turn in enumerate(dialogue.turns):
            if turn.role == RECOMMENDER and turn.items:
                where.append((d, t))
                utility.append(truth.utility(dialogue.dialogue_id)[parsed.catalogue.rows(turn.items)].mean())
    signals = {name: np.array([values[d][t] for d, t in where]) for name, values in columns.items()}
    return np.array(utility), signals


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        generate(tmp_path / name, sizes(), seed=3)
    generate(tmp_path / "c", sizes(), seed=4)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == FILES
    for name in FILES:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes(), name
        assert first != (tmp_path / "c" / name).read_bytes(), name


def test_what_is_there_is_kept_and_other_settings_write_anew(tmp_path):
    generate(tmp_path, sizes(), seed=1)
    (tmp_path / "train_data.jsonl").write_text("kept")
    generate(tmp_path, sizes(), seed=1)
    assert (tmp_path / "train_data.jsonl").read_text() == "kept"
    generate(tmp_path, sizes(train=30), seed=1)
    assert len(read(tmp_path, "train")) == 30


def test_an_interrupted_run_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(tmp_path, sizes(), seed=1)
    monkeypatch.undo()
    generate(tmp_path, sizes(), seed=1)
    assert len(Truth.load(tmp_path).dialogue_ids) == 160


def test_a_corpus_of_another_origin_is_not_overwritten(tmp_path):
    (tmp_path / "train_data.jsonl").write_text("real")
    with pytest.raises(InputError, match=r"config\.data\.dir=.*did not write"):
        generate(tmp_path, sizes(), seed=1)
    assert (tmp_path / "train_data.jsonl").read_text() == "real"


def test_every_record_is_a_redial_record(folder):
    with (folder / "movies_with_mentions.csv").open(newline="") as file:
        movies = {row["movieId"]: row for row in csv.DictReader(file)}
    assert len(movies) == 120
    counted = dict.fromkeys(movies, 0)
    conversations, message_ids, untimed = [], [], 0
    for part in ("train", "test"):
        for record in read(folder, part):
            conversations.append(record["conversationId"])
            people = record["initiatorWorkerId"], record["respondentWorkerId"]
            assert people[0] != people[1]
            suggested = {}
            for message in record["messages"]:
                message_ids.append(message["messageId"])
                assert message["senderWorkerId"] in people
                for item in re.findall(r"@(\d+)", message["text"]):
                    suggested.setdefault(item, int(message["senderWorkerId"] == people[1]))
            mentions = record["movieMentions"] or {}
            assert mentions == {item: movies[item]["movieName"] for item in suggested}
            for item in mentions:
                counted[item] += 1
            own = record["initiatorQuestions"] or {}
            assert {item: answers["suggested"] for item, answers in own.items()} == suggested
            for form in (own, record["respondentQuestions"] or {}):
                assert all(
                    set(a) == {"suggested", "seen", "liked"} and set(a.values()) <= {0, 1, 2} for a in form.values()
                )
            times = [message.get("timeOffset") for message in record["messages"]]
            if None in times:
                untimed += 1
                assert times == [None] * len(times)
            else:
                assert times[0] == 0
                assert all(isinstance(t, int) for t in times)
                assert times == sorted(times)
    assert len(set(conversations)) == len(conversations) == 850
    assert len(set(message_ids)) == len(message_ids)
    assert 5 < untimed < 60
    assert counted == {item: int(row["nbMentions"]) for item, row in movies.items()}
    metadata = json.loads((folder / "movies_metadata.json").read_text())
    assert {item: entry["name"] for item, entry in metadata.items()} == {i: r["movieName"] for i, r in movies.items()}
    assert len({entry["name"] for entry in metadata.values()}) == 120


def test_nobody_of_test_is_in_train_and_a_split_by_recommender_shares_no_seeker(folder):
    people = {}
    for part in ("train", "test"):
        records = read(folder, part)
        people[part] = {r[k] for r in records for k in ("initiatorWorkerId", "respondentWorkerId")}
        met: dict[int, set[int]] = {}
        for record in records:
            met.setdefault(record["initiatorWorkerId"], set()).add(record["respondentWorkerId"])
        assert all(len(respondents) == 1 for respondents in met.values())
    assert not people["train"] & people["test"]


def test_the_language_is_small_and_short(parsed):
    turns = [turn for dialogue in parsed.train for turn in dialogue.turns]
    assert len({word for turn in turns for word in turn.text.split()}) < 500
    assert 6 <= np.mean([len(turn.text.split()) for turn in turns]) <= 14
    lengths = [len(dialogue.turns) for dialogue in parsed.train]
    assert 6 <= np.mean(lengths) <= 12
    assert min(lengths) >= 4
    assert max(lengths) <= 14
    recommender = [turn for turn in turns if turn.role == RECOMMENDER]
    assert 0.4 <= np.mean([bool(turn.items) for turn in recommender]) <= 0.6


def test_the_loader_reads_it_whole(folder, parsed):
    assert (len(parsed.train), len(parsed.test), len(parsed.catalogue)) == (700, 150, 120)
    assert parsed.skipped == []
    truth = Truth.load(folder)
    assert {d.dialogue_id for d in [*parsed.train, *parsed.test]} == set(truth.dialogue_ids)
    item = parsed.catalogue.items[0]
    assert item.year
    assert item.genres
    assert item.plot
    assert len(item.people) == 2


def test_truth_is_aligned_by_item_id(folder):
    truth = Truth.load(folder)
    assert truth.utility_DN.shape == (850, 120)
    assert truth.utility_DN.dtype == np.float32
    assert truth.utility_DN.min() >= 0
    assert truth.utility_DN.max() <= 1
    chosen = [truth.item_ids[n] for n in (7, 3, 50)]
    aligned = truth.aligned(Catalogue(tuple(Item(item, "x") for item in chosen)))
    assert aligned.item_ids == tuple(chosen)
    np.testing.assert_array_equal(aligned.utility(truth.dialogue_ids[9]), truth.utility_DN[9, [7, 3, 50]])
    with pytest.raises(InputError, match="'nowhere'"):
        truth.aligned(Catalogue((Item("nowhere", "x"),)))
    with pytest.raises(InputError, match="no dialogue 'none'"):
        truth.utility("none")


def test_no_truth_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"truth\.npz: not found"):
        Truth.load(tmp_path)


def test_the_words_tell_the_taste(folder, parsed):
    """Items of the genre asked for first are worth much more to the seeker, and people talk of what they like."""
    from crs_jax.data.simulated_words import GENRES

    truth = Truth.load(folder).aligned(parsed.catalogue)
    asked = {ask: genre.name for genre in GENRES for ask in genre.asks}
    inside, outside, named = [], [], []
    for dialogue in parsed.train:
        utility_N = truth.utility(dialogue.dialogue_id)
        said = next(turn for turn in dialogue.turns if turn.role == SEEKER)
        genre = next((name for ask, name in asked.items() if f"{ask} movie" in said.text), None)
        if genre:
            match_N = np.array([genre in item.genres for item in parsed.catalogue.items])
            inside.append(utility_N[match_N].mean())
            outside.append(utility_N[~match_N].mean())
        named += [utility_N[row] for row in parsed.catalogue.rows(said.items)]
    assert len(inside) > 300
    assert np.mean(inside) > np.mean(outside) + 0.3
    assert np.mean(named) > 0.8


def test_the_recommender_is_better_than_chance_and_leaves_room(folder, parsed, proposals):
    truth = Truth.load(folder).aligned(parsed.catalogue)
    utility, _ = proposals
    assert truth.utility_DN.mean() + 0.1 < utility.mean() < truth.utility_DN.max(axis=1).mean() - 0.3


@pytest.mark.parametrize("signal", [*PARTS[:4], "engagement", "shift"])
def test_a_better_fit_gives_higher_mean_signals(proposals, signal):
    utility, signals = proposals
    value, thirds = signals[signal], np.quantile(utility, [1 / 3, 2 / 3])
    low, middle, high = (np.nanmean(value[np.digitize(utility, thirds) == third]) for third in range(3))
    assert low < middle < high


def test_signals_are_informative_and_noisy(proposals):
    utility, signals = proposals
    known = ~np.isnan(signals["shift"])
    assert 0.5 < np.corrcoef(utility, signals["engagement"])[0, 1] < 0.8
    assert 0.4 < np.corrcoef(utility[known], signals["shift"][known])[0, 1] < 0.7


def test_liked_follows_utility_with_noise(folder, parsed):
    truth = Truth.load(folder).aligned(parsed.catalogue)
    liked, utility = [], []
    for dialogue in parsed.train:
        for item, feedback in dialogue.feedback.items():
            if feedback.suggested == 1 and feedback.liked is not None:
                liked.append(feedback.liked)
                utility.append(truth.utility(dialogue.dialogue_id)[parsed.catalogue.index[item]])
    assert 0.5 < np.corrcoef(liked, utility)[0, 1] < 0.95


@pytest.mark.parametrize("items", [20, 2500])
def test_other_catalogue_sizes(tmp_path, items):
    generate(tmp_path, sizes(items, 5, 2), seed=0)
    metadata = json.loads((tmp_path / "movies_metadata.json").read_text())
    assert len(metadata) == len({entry["name"] for entry in metadata.values()}) == items
    assert Truth.load(tmp_path).utility_DN.shape == (7, items)


@pytest.mark.parametrize(("field", "value"), [("catalogue_size", 19), ("train_dialogues", 0), ("test_dialogues", -1)])
def test_sizes_that_are_too_small(tmp_path, field, value):
    settings = sizes()
    setattr(settings, field, value)
    with pytest.raises(InputError, match=rf"config\.simulator\.{field}: {value} is too small"):
        generate(tmp_path / "x", settings, seed=0)
    assert not (tmp_path / "x").exists()


def test_a_negative_seed(tmp_path):
    with pytest.raises(InputError, match=r"config\.seed: -1"):
        generate(tmp_path, sizes(), seed=-1)


def test_truth_is_read_by_no_stage_of_training():
    """The simulator's truth is for checking alone: nothing below evaluation and pipeline opens it. Its seekers may be
    talked to (`config.ppo.seeker`): what is heard of them is what they say, and that they leave.
    """
    package = pathlib.Path(simulated.__file__).parents[1]
    for room in ("signals", "models", "rl", "training"):
        for path in (package / room).glob("*.py"):
            text = path.read_text().replace("from crs_jax.data.simulated_seeker import SimulatedSeekers\n", "")
            assert not re.search(r"data\.simulated|truth\.npz|utility", text), path


@pytest.fixture(scope="module")
def played_again(folder, parsed):
    some = parsed.train[::6]
    return some, simulated.retest(folder, some, parsed.catalogue, draws=3)


def test_played_again_each_message_that_is_reacted_to_gets_other_reactions(played_again):
    """Of the recommender's last messages before the seeker's, and of those after which the seeker may leave."""
    some, found = played_again
    changed = left = 0
    for dialogue in some:
        again, roles = found.again[dialogue.dialogue_id], [turn.role for turn in dialogue.turns]
        answered = {t for t in range(1, len(roles) - 1) if (roles[t], roles[t + 1]) == (RECOMMENDER, SEEKER)}
        assert set(again) - {len(roles) - 1} == answered
        left += len(roles) - 1 in again
        for turn, others in again.items():
            assert len(others) == 3
            for other in others:
                assert other.dialogue_id == dialogue.dialogue_id
                assert other.turns[: turn + 1] == dialogue.turns[: turn + 1]
                changed += other.turns != dialogue.turns
    assert changed > 0.95 * 3 * sum(map(len, found.again.values()))
    assert left > 0  # silent leavings


def test_played_again_reactions_are_drawn_as_those_of_the_corpus(played_again):
    """Length of the answer, delay, and whether there is one: the same means, within four standard errors."""
    some, found = played_again

    def facts(dialogue, turn):
        after = dialogue.turns[turn + 1 :]
        if not after or after[0].role != SEEKER:
            return 0.0, np.nan, np.nan, len(after)
        sent, came = dialogue.turns[turn].seconds, after[0].seconds
        return 1.0, len(after[0].text.split()), np.nan if came is None else np.log1p(came - sent), len(after)

    pairs = [
        (facts(dialogue, turn), facts(other, turn))
        for dialogue in some
        for turn, others in found.again[dialogue.dialogue_id].items()
        for other in others[:1]
    ]
    gap = np.array([np.subtract(one, other) for one, other in pairs])
    assert len(gap) > 300
    for m in range(gap.shape[1]):
        known = gap[np.isfinite(gap[:, m]), m]
        assert known.std() > 0
        assert abs(known.mean()) < 4 * known.std() / np.sqrt(len(known)), m


def test_moods_are_those_that_the_words_were_chosen_by(played_again):
    some, found = played_again
    checked = 0
    for dialogue in some:
        for turn, mood in found.mood[dialogue.dialogue_id].items():
            assert dialogue.turns[turn].items
            level = min(max(int(np.floor(5 * mood)), 0), 4)
            opening = [template.partition("{item}")[0] for template in simulated_words.REACTIONS[level]]
            assert any(dialogue.turns[turn + 1].text.startswith(words.strip()) for words in opening)
            checked += 1
    assert checked > 200


def test_what_cannot_be_played_again(tmp_path, folder, parsed):
    with pytest.raises(InputError, match=r"simulator\.json: not found"):
        simulated.retest(tmp_path, parsed.train[:1], parsed.catalogue, 1)
    with pytest.raises(InputError, match="no dialogue 701 in the training file"):
        simulated.retest(folder, parsed.test[:1], parsed.catalogue, 1)
    moved = dataclasses.replace(parsed.train[0], turns=parsed.train[1].turns)
    with pytest.raises(InputError, match="dialogue 1 is not what these settings give"):
        simulated.retest(folder, [moved], parsed.catalogue, 1)
