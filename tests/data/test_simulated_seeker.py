"""The simulator's seekers as partners: they know what they told, and react by their true utilities."""

import types

import numpy as np
import pytest

from crs_jax.data import simulated_words as words
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.data.simulated import generate
from crs_jax.data.simulated_seeker import Answering, SimulatedSeekers
from crs_jax.data.simulated_talk import Conversation, Recommender
from crs_jax.data.simulated_truth import Truth
from crs_jax.data.simulated_world import make_seeker, make_world
from crs_jax.runtime.errors import InputError

SETTINGS = types.SimpleNamespace(catalogue_size=40, train_dialogues=12, test_dialogues=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated")
    generate(path, SETTINGS, 3)
    return path


@pytest.fixture(scope="module")
def seekers(folder):
    return SimulatedSeekers(folder, SETTINGS, 3)


def as_turns(talk: Conversation) -> list[Turn]:
    """Of the simulator's messages; `@id` becomes a mention."""
    turns, ids = [], sorted(talk.world.ids, key=len, reverse=True)
    for message in talk.messages:
        text, items = message.text, []
        for at in [n for n, character in enumerate(text) if character == "@"]:
            items.append(next(item for item in ids if text[at + 1 :].startswith(item)))
        for item in items:
            text = text.replace(f"@{item}", MENTION)
        turns.append(Turn(message.role, text, tuple(items)))
    return turns


def test_what_was_told_is_read_off_the_words():
    """Against what each conversation remembers of itself, in the middle of it too."""
    rng = np.random.default_rng(0)
    world, halves = make_world(rng, 60), 0
    for _ in range(60):
        talk = Conversation(rng, world, make_seeker(rng, world), Recommender(0.5, 0.5))
        found = Answering(rng, world, talk.seeker, as_turns(talk))
        assert sorted(found._unsaid) == sorted(talk._unsaid)
        assert found.suggested == talk.suggested
        early = Answering(rng, world, talk.seeker, as_turns(talk)[:3])
        assert len(early._unsaid) >= len(found._unsaid)
        halves += len(early._unsaid) > len(found._unsaid)
    assert halves > 20


def test_the_seekers_are_those_of_the_files(folder, seekers):
    truth = Truth.load(folder)
    for dialogue in truth.dialogue_ids:
        np.testing.assert_allclose(seekers._seekers[dialogue].utility_N, truth.utility(dialogue), atol=1e-6)
    with pytest.raises(InputError, match=r"truth\.npz: other seekers than those of config\.simulator and config\.seed"):
        SimulatedSeekers(folder, SETTINGS, 4)


def test_reactions_follow_the_true_utility(seekers):
    """The best item pleases, the worst does not, the seeker of the worst leaves more often."""
    ids, moods, left = seekers.world.ids, {}, {}
    hello = [Turn(SEEKER, "Hello."), Turn(RECOMMENDER, "Hi."), Turn(SEEKER, "Hi!"), Turn(RECOMMENDER, "Okay.")]
    for kind in ("worst", "best"):
        moods[kind], left[kind] = [], []
        for dialogue, seeker in seekers._seekers.items():
            order = np.argsort(seeker.utility_N)
            item = ids[order[0 if kind == "worst" else -1]]
            proposal = Turn(RECOMMENDER, f"Try {MENTION}.", (item,))
            for n in range(30):
                turn, stays = seekers.answer(dialogue, [*hello, proposal], np.random.default_rng(n))
                assert turn.role == SEEKER
                assert set(turn.items) <= {*ids}
                left[kind].append(not stays)
                said = turn.render()
                levels = [
                    level
                    for level, forms in enumerate(words.REACTIONS)
                    if any(said.startswith(form.format(item=f"@{item}")) for form in forms)
                ]
                moods[kind] += levels
    assert np.mean(moods["best"]) > 3 > 1.5 > np.mean(moods["worst"])
    assert np.mean(left["best"]) < 0.15 < 0.2 < np.mean(left["worst"])


def test_a_reply_that_proposes_nothing_new_is_answered_by_the_next_need(seekers):
    dialogue, seeker = next(iter(seekers._seekers.items()))
    kind, value = seeker.needs[0]
    assert kind == "genre"
    before = [Turn(SEEKER, "Hello."), Turn(RECOMMENDER, "What do you like?")]
    turn, stays = seekers.answer(dialogue, before, np.random.default_rng(0))
    assert stays
    assert any(turn.text == f.format(genre=g) for f in words.NEEDS["genre"] for g in words.GENRES[value].asks)
    item = seekers.world.ids[0]
    again = [Turn(SEEKER, f"I know {MENTION}.", (item,)), Turn(RECOMMENDER, f"{MENTION}!", (item,))]
    repeated, stays = seekers.answer(dialogue, [*before, turn, *again], np.random.default_rng(0))
    kind, _ = seeker.needs[1]
    forms = [form.split("{")[0] for form in words.NEEDS[kind]]
    assert stays
    assert any(form in repeated.render() for form in forms)
    assert repeated.render() not in turn.text
    same, _ = seekers.answer(dialogue, before, np.random.default_rng(0))
    assert same == turn
