"""The embedded corpus: simulated seekers and recommenders in ReDial's files, with the truth beside them.

Every other corpus only lets one guess whether an aligned recommender pleases. Here each seeker's utility for each item
is known, so that the claim can be checked. Poor and good proposals differ in what a log holds (latency, length, mood,
uptake, staying), as in a real one, and only there: the truth is a file of its own, which no stage of training reads.
Where PPO's episodes have several turns it can talk to these seekers (`simulated_seeker.py`), and hears what they say.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crs_jax.data import redial
from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import SEEKER, Dialogue
from crs_jax.data.simulated_talk import Conversation, Recommender, Spoken
from crs_jax.data.simulated_truth import TRUTH_FILE
from crs_jax.data.simulated_world import Seeker, World, make_seeker, make_world
from crs_jax.runtime.errors import InputError

VERSION = 1  # raise when the same settings give other files
SMALLEST = {"catalogue_size": 20, "train_dialogues": 1, "test_dialogues": 1}
FILES = ("train_data.jsonl", "test_data.jsonl", "movies_with_mentions.csv", "movies_metadata.json")
Watch = Callable[[str], Callable[[Conversation, Spoken], None] | None] | None
SETTINGS_FILE = "simulator.json"
_Part = tuple[list[dict[str, Any]], list[Seeker]]


def generate(folder: pathlib.Path, settings: Any, seed: int) -> None:
    """Writes train_data.jsonl, test_data.jsonl, movies_with_mentions.csv, movies_metadata.json and truth.npz.

    The same settings and seed give the same bytes. A folder that already holds them is left alone; one that holds
    others is written anew.

    Args:
      folder: made if missing; `InputError` where it holds a corpus that is not the simulator's.
      settings: `config.simulator`, or anything with its fields `catalogue_size`, `train_dialogues`, `test_dialogues`.
      seed: of everything drawn.
    """
    folder, wanted = pathlib.Path(folder), _wanted(settings, seed)
    if holds(folder, settings, seed):
        return
    marker = folder / SETTINGS_FILE
    if not marker.exists() and (folder / FILES[0]).exists():
        raise InputError(f"config.data.dir={str(folder)!r}: holds a corpus the simulator did not write; give another")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("unfinished\n", encoding="utf-8")

    world, (train, seekers), (test, more) = _all(wanted)
    for name, records in zip(FILES, (train, test), strict=False):
        lines = [json.dumps(record) for record in records]
        (folder / name).write_bytes(("\n".join(lines) + "\n").encode())
    mentions: dict[str, int] = dict.fromkeys(world.ids, 0)
    for record in train + test:
        for item in record["movieMentions"]:
            mentions[item] += 1
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("movieId", "movieName", "nbMentions"))
    writer.writerows((world.ids[n], world.name(n), mentions[world.ids[n]]) for n in range(len(world)))
    (folder / FILES[2]).write_bytes(table.getvalue().encode())
    metadata = {}
    for n, item in enumerate(world.ids):
        director, star = world.people(n)
        metadata[item] = {
            "name": world.name(n), "genre": world.genres(n), "plot": world.plots[n], "director": [director],
            "writer": [director], "star": [star], "imdb_id": "",
        }  # fmt: skip
    (folder / FILES[3]).write_bytes(json.dumps(metadata).encode())
    np.savez(
        folder / TRUTH_FILE,
        dialogue_ids=np.array([record["conversationId"] for record in train + test]),
        item_ids=np.array(world.ids),
        utility_DN=np.stack([seeker.utility_N for seeker in seekers + more]).astype(np.float32),
    )
    marker.write_text(_marked(wanted), encoding="utf-8")


def holds(folder: pathlib.Path, settings: Any, seed: int) -> bool:
    """Whether the folder holds what `generate` would write there."""
    marker = pathlib.Path(folder) / SETTINGS_FILE
    return marker.is_file() and marker.read_bytes() == _marked(_wanted(settings, seed)).encode()


def _wanted(settings: Any, seed: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {"version": VERSION, "seed": int(seed)}
    for field, smallest in SMALLEST.items():
        wanted[field] = int(getattr(settings, field))
        if wanted[field] < smallest:
            raise InputError(f"config.simulator.{field}: {wanted[field]} is too small; give at least {smallest}")
    if int(seed) < 0:
        raise InputError(f"config.seed: {seed} is negative; give 0 or more")
    return wanted


@dataclasses.dataclass(frozen=True)
class Retest:
    """How the seekers of a generated corpus might have reacted as well.

    Attributes:
      again: by dialogue id and turn of a recommender's message that was reacted to: dialogues that are the same up to
        that message, with fresh noise in the seeker's reaction and in all that follows.
      mood: by dialogue id and turn of a proposal, the seeker's mood in the corpus' own reaction, of which their words
        are chosen; about 0 to 1.
    """

    again: Mapping[str, Mapping[int, Sequence[Dialogue]]]
    mood: Mapping[str, Mapping[int, float]]


def retest(folder: pathlib.Path, dialogues: Sequence[Dialogue], catalogue: Catalogue, draws: int) -> Retest:
    """Plays the corpus in the folder again, with `draws` other reactions to each recommender's message.

    Seekers keep what is theirs (taste, cheer, pace, needs), which a recommender can only guess.

    Args:
      folder: what `generate` wrote.
      dialogues: those wanted, of the corpus' training file (`validation` is cut from it).
      catalogue: of the corpus.
      draws: other reactions a message.

    Raises:
      InputError: the folder is not the simulator's, or the dialogues are not those that its settings give.
    """
    marker = pathlib.Path(folder) / SETTINGS_FILE
    if not marker.exists():
        raise InputError(f"{marker}: not found; only a folder that the simulator wrote can be played again")
    settings = json.loads(marker.read_text(encoding="utf-8"))
    own = {dialogue.dialogue_id: dialogue for dialogue in dialogues}
    again: dict[str, dict[int, list[Dialogue]]] = {name: {} for name in own}
    mood: dict[str, dict[int, float]] = {}

    def watch(name: str) -> Callable[[Conversation, Spoken], None] | None:
        if name not in own or int(name) > settings["train_dialogues"]:  # more are played than are kept
            return None

        def shown(talk: Conversation, last: Spoken) -> None:
            turn, timed = len(talk.messages) - 1, own[name].turns[0].seconds is not None
            for draw in range(draws):
                rng = np.random.default_rng([settings["seed"], int(name), turn, draw, 41])
                value = {
                    "conversationId": name, "initiatorWorkerId": 0, "respondentWorkerId": 1,
                    "messages": _messages(talk.retold(rng, last), timed, 0, 1, 0),
                }  # fmt: skip
                other = redial.dialogue_of(value, catalogue, own[name].source)
                if other.turns[: turn + 1] != own[name].turns[: turn + 1]:
                    raise InputError(f"{marker}: dialogue {name} is not what these settings give; generate it anew")
                again[name].setdefault(turn, []).append(other)
            mood[name] = talk.moods  # filled while the talk goes on

        return shown

    world, train_seed, _ = _world(settings)
    _records(np.random.default_rng(train_seed), world, settings["train_dialogues"], 0, 0, watch)
    unknown = next((name for name in own if name not in mood), None)
    if unknown is not None:
        raise InputError(f"{marker}: no dialogue {unknown} in the training file of these settings")
    return Retest(again, mood)


def _world(settings: Mapping[str, Any]) -> tuple[World, Any, Any]:
    """The world of these settings, and the seeds of its training and test dialogues."""
    world_seed, train_seed, test_seed = np.random.SeedSequence(settings["seed"]).spawn(3)
    return make_world(np.random.default_rng(world_seed), settings["catalogue_size"]), train_seed, test_seed


def cast(settings: Any, seed: int) -> tuple[World, dict[str, Seeker]]:
    """The catalogue and, by dialogue, the seekers of the corpus that `generate` writes with the same arguments."""
    sizes = {field: int(getattr(settings, field)) for field in SMALLEST}
    world, *parts = _all({**sizes, "seed": int(seed)})
    drawn = [(r["conversationId"], s) for records, seekers in parts for r, s in zip(records, seekers, strict=True)]
    return world, dict(drawn)


def _all(settings: Mapping[str, Any]) -> tuple[World, _Part, _Part]:
    """The catalogue, and records and seekers of train and of test."""
    world, train_seed, test_seed = _world(settings)
    first_test = settings["train_dialogues"]
    train = _records(np.random.default_rng(train_seed), world, first_test, 0, 0)
    workers = 1 + max(max(r["initiatorWorkerId"], r["respondentWorkerId"]) for r in train[0])
    test = _records(np.random.default_rng(test_seed), world, settings["test_dialogues"], first_test, workers)
    return world, train, test


def _marked(wanted: Mapping[str, Any]) -> str:
    return json.dumps(wanted, indent=1) + "\n"


def _records(
    rng: np.random.Generator, world: World, count: int, first_dialogue: int, first_worker: int, watch: Watch = None
) -> tuple[list[dict[str, Any]], list[Seeker]]:
    """`count` dialogues and, for each, its seeker; `watch` makes of a dialogue's id what watches it.

    A recommender works with three to six seekers, each of whom comes once or twice and meets nobody else, so that a
    split by recommender leaves no seeker on both sides.
    """
    records: list[dict[str, Any]] = []
    seekers: list[Seeker] = []
    worker, message = first_worker, 1000 * first_dialogue
    while len(records) < count:
        respondent, worker = worker, worker + 1
        recommender = Recommender(float(np.clip(rng.normal(0.42, 0.12), 0.15, 0.7)), float(rng.uniform(0.2, 0.8)))
        for _ in range(int(rng.integers(3, 7))):
            initiator, worker = worker, worker + 1
            seeker = make_seeker(rng, world)
            for _ in range(int(rng.integers(1, 3))):
                dialogue_id = str(first_dialogue + len(records) + 1)
                talk = Conversation(rng, world, seeker, recommender, watch(dialogue_id) if watch else None)
                records.append(_record(rng, talk, dialogue_id, initiator, respondent, message))
                seekers.append(seeker)
                message += len(talk.messages)
    return records[:count], seekers[:count]


def _messages(talk: Conversation, timed: bool, initiator: int, respondent: int, message: int) -> list[dict[str, Any]]:
    messages = []
    for number, sent in enumerate(talk.messages):
        record: dict[str, Any] = {"timeOffset": sent.seconds} if timed else {}
        record["text"] = sent.text
        record["senderWorkerId"] = initiator if sent.role == SEEKER else respondent
        record["messageId"] = message + number
        messages.append(record)
    return messages


def _record(
    rng: np.random.Generator, talk: Conversation, dialogue_id: str, initiator: int, respondent: int, message: int
) -> dict[str, Any]:
    """One conversation as a ReDial record; times are missing in a few, the second questionnaire in a few."""
    messages = _messages(talk, rng.random() > 0.03, initiator, respondent, message)
    world, utility_N = talk.world, talk.seeker.utility_N
    own, other = {}, {}
    for row, suggested in talk.suggested.items():
        fame = world.popularity_N[row] / world.popularity_N.max()
        seen = 1 if suggested == 0 else int(rng.random() < 0.15 + 0.6 * fame)
        liked = int(suggested == 0 or utility_N[row] + rng.normal(0.0, 0.15) > 0.45)
        if rng.random() < 0.08:
            liked = 2
        own[world.ids[row]] = {"suggested": suggested, "seen": seen, "liked": liked}
        other[world.ids[row]] = {"suggested": suggested, "seen": seen, "liked": liked if rng.random() < 0.9 else 2}
    return {
        "movieMentions": {world.ids[row]: world.name(row) for row in talk.suggested} or [],
        "respondentQuestions": (other if rng.random() < 0.95 else []) or [],
        "messages": messages,
        "conversationId": dialogue_id,
        "respondentWorkerId": respondent,
        "initiatorWorkerId": initiator,
        "initiatorQuestions": own or [],
    }
