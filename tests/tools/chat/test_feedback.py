"""The loop from live use back to training: what is said is logged whole, read by ReDial's loader, and its times reach
the engagement label.
"""

import errno
import json
import os
import pathlib
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from configs.redial_ppo import get_config
from crs_jax.data import redial
from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.corpus import load
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Turn
from crs_jax.runtime.errors import InputError
from crs_jax.signals.engagement import EngagementModel
from crs_jax.signals.reactions import words_of
from crs_jax.tools.chat import collect, feedback
from crs_jax.tools.chat.feedback import FeedbackWriter, mark, read_feedback

ROOT = pathlib.Path(__file__).resolve().parents[3]
CATALOGUE = Catalogue((Item("101", "Alien", 1979), Item("205", "Arrival", 2016)))


def said(writer: FeedbackWriter, name: str, *lines: tuple[str, str, tuple[str, ...], float]) -> None:
    writer.write(name, "ppo", *((Turn(role, text, items), 1.7e9 + seconds) for role, text, items, seconds in lines))


@pytest.fixture
def log(tmp_path) -> pathlib.Path:
    """Three talks, two of them interleaved."""
    writer = FeedbackWriter(tmp_path / "talks.jsonl", CATALOGUE)
    said(writer, "a", (SEEKER, f"Like {MENTION}? @205 <b>", ("101",), 0.0), (RECOMMENDER, f"{MENTION}", ("205",), 0.5))
    said(writer, "b", (SEEKER, "hello", (), 10.0))
    said(writer, "a", (SEEKER, "sounds good, thanks", (), 30.5), (RECOMMENDER, "Enjoy it!", (), 31.0))
    said(writer, "b", (RECOMMENDER, f"try {MENTION}2", ("101",), 10.25))
    said(writer, "c", (SEEKER, "hi", (), 99.0), (RECOMMENDER, f"see {MENTION}", ("205",), 99.5))
    said(writer, "b", (SEEKER, "no thanks", (), 12.25))
    said(writer, "c", (SEEKER, "hm", (), 102.5))
    return tmp_path / "talks.jsonl"


@pytest.fixture
def corpus_dir(tmp_path) -> pathlib.Path:
    """A small corpus in ReDial's format."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, count in ((redial.TRAIN, 8), (redial.TEST, 2)):
        talks = []
        for n in range(count):
            lines = [
                (7, "Something like @101?", 0),
                (9, "Try @205.", 21),
                (7, "sounds great, I will" * (n % 3 + 1), 40 + n),
            ]
            talks.append({
                "conversationId": f"{name}-{n}", "initiatorWorkerId": 7, "respondentWorkerId": 9 + n,
                "messages": [{"senderWorkerId": 7 if who == 7 else 9 + n, "text": text, "timeOffset": at}
                             for who, text, at in lines],
                "movieMentions": {"101": "Alien (1979)", "205": "Arrival (2016)"},
                "initiatorQuestions": {}, "respondentQuestions": {},
            })  # fmt: skip
        (folder / name).write_text("\n".join(map(json.dumps, talks)), encoding="utf-8")  # no newline at the end
    (folder / redial.MOVIES).write_text('movieId,movieName,nbMentions\n101,"Alien (1979)",3\n205,"Arrival (2016)",3\n')
    return folder


def corpus_of(folder: pathlib.Path, cache: pathlib.Path):
    config = get_config("scratch")
    with config.unlocked():
        config.data.dir, config.data.validation_dialogues = str(folder), 0
    return load(config, cache)


def test_logged_talks_are_read_by_redials_loader_and_their_dwell_is_in_the_label(log, corpus_dir, tmp_path):
    out = tmp_path / "with_talks"
    assert collect.collect([log], corpus_dir, out) == (3, 10)
    before, after = corpus_of(corpus_dir, tmp_path / "c1"), corpus_of(out, tmp_path / "c2")
    assert [d.dialogue_id for d in after.test] == [d.dialogue_id for d in before.test]
    talks = {d.dialogue_id: d for d in after.train if d.dialogue_id in "abc"}
    assert len(after.train) == len(before.train) + 3
    assert talks["a"].turns == (
        Turn(SEEKER, f"Like {MENTION}? @ 205 <b>", ("101",), 0.0),
        Turn(RECOMMENDER, MENTION, ("205",), 0.5),
        Turn(SEEKER, "sounds good, thanks", (), 30.5),
        Turn(RECOMMENDER, "Enjoy it!", (), 31.0),
    )
    assert talks["b"].turns[1] == Turn(RECOMMENDER, f"try {MENTION} 2", ("101",), 0.25)
    assert [turn.seconds for turn in talks["c"].turns] == [0.0, 0.5, 3.5]

    model = EngagementModel.fit(after.train)
    parts = model.parts(list(talks.values()))
    intercept, read, typed = model.dwell_weights
    for n, (name, seconds) in enumerate([("a", 30.0), ("b", 2.0), ("c", 3.0)]):
        assert list(talks)[n] == name
        words = [np.log1p(words_of([turn])) for turn in talks[name].turns[1:3]]
        expected = np.log1p(seconds) - intercept - read * words[0] - typed * words[1]
        assert parts["dwell"][n][1] == pytest.approx(expected, abs=1e-5)
    assert parts["continuation"][0][3] == 0.0  # 'Enjoy it!' was never answered
    assert parts["uptake"][0][1] == 1.0
    assert np.isfinite(model.score([talks["a"]])[0][1])


def test_a_longer_stay_is_a_higher_dwell(corpus_dir, tmp_path):
    """Two talks of the same words; one stays twenty times as long."""
    writer = FeedbackWriter(tmp_path / "talks.jsonl", CATALOGUE)
    for name, gap in (("short", 2.0), ("long", 40.0)):
        said(writer, name, (SEEKER, "hi", (), 0.0), (RECOMMENDER, f"see {MENTION}", ("205",), 0.5),
             (SEEKER, "sounds nice", (), 0.5 + gap))  # fmt: skip
    collect.collect([tmp_path / "talks.jsonl"], corpus_dir, tmp_path / "out")
    corpus = corpus_of(tmp_path / "out", tmp_path / "cache")
    talks = [d for name in ("short", "long") for d in corpus.train if d.dialogue_id == name]
    short, long = (values[1] for values in EngagementModel.fit(corpus.train).parts(talks)["dwell"])
    assert long - short == pytest.approx(np.log1p(40.0) - np.log1p(2.0), abs=1e-5)


def test_each_talk_has_persons_of_its_own(log):
    talks, broken = read_feedback(log)
    persons = [talk[f"{side}WorkerId"] for talk in talks for side in ("initiator", "respondent")]
    assert len(set(persons)) == 6
    assert broken == []


def test_ids_are_marked_and_typed_ones_are_not():
    assert mark(Turn(SEEKER, f"@101 {MENTION}@205{MENTION}3 @x", ("205", "101"))) == "@ 101 @205@ 205@101 3 @x"


def test_a_line_that_breaks_off_costs_itself_alone(log, capsys, corpus_dir, tmp_path):
    whole = log.read_bytes()
    log.write_bytes(whole + whole.splitlines()[0][:40])  # as a killed server leaves it
    writer = FeedbackWriter(log, CATALOGUE)
    said(writer, "d", (SEEKER, "hello", (), 0.0), (RECOMMENDER, "hi", (), 1.0))
    talks, broken = read_feedback(log)
    assert [talk["conversationId"] for talk in talks] == ["a", "b", "c", "d"]
    assert broken == [11]
    collect.collect([log], corpus_dir, tmp_path / "out")
    assert "line 11 breaks off" in capsys.readouterr().out


def test_a_full_disk_leaves_no_part_of_a_message(log):
    """The system's own limit of a file's size stands for the disk: the first bytes fit, the rest does not."""
    whole, writer = log.read_bytes(), FeedbackWriter(log, CATALOGUE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 150, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{log}'"):
            said(writer, "d", (SEEKER, "hello", (), 0.0), (RECOMMENDER, "hi", (), 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_bytes() == whole
    said(writer, "e", (SEEKER, "hello", (), 0.0), (RECOMMENDER, "hi", (), 1.0))
    talks, broken = read_feedback(log)
    assert [talk["conversationId"] for talk in talks] == ["a", "b", "c", "e"]
    assert broken == []


def test_half_a_line_that_stays_costs_its_own_talk_alone(log, monkeypatch):
    """A disk that takes no more and gives nothing back either; then it has room again, for the same writer."""
    writer, write = FeedbackWriter(log, CATALOGUE), os.write
    full = OSError(errno.ENOSPC, "No space left on device")
    attempts = iter([lambda file, data: write(file, data[:40])])

    def fill(file, data):
        for attempt in attempts:
            return attempt(file, data)
        raise full

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", fill)
        disk.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            said(writer, "d", (SEEKER, "hello", (), 0.0), (RECOMMENDER, "hi", (), 1.0))
    assert not log.read_bytes().endswith(b"\n")
    said(writer, "e", (SEEKER, "hello", (), 0.0), (RECOMMENDER, "hi", (), 1.0))
    talks, broken = read_feedback(log)
    assert {talk["conversationId"]: len(talk["messages"]) for talk in talks} == {"a": 4, "b": 3, "c": 3, "e": 2}
    assert broken == [11]


def test_a_talk_is_forgotten_and_the_others_go_on(log, capsys):
    """Half a line of it too; the server that has the log open writes on, into the new file."""
    writer = FeedbackWriter(log, CATALOGUE)
    with open(log, "ab") as file:
        file.write(log.read_bytes().splitlines()[0][:60])
    kept = [line for line in log.read_bytes().splitlines() if b'"dialogue": "a"' not in line]
    collect.main([f"--log={log}", "--forget=a"])
    assert "5 messages of talk a are forgotten" in capsys.readouterr().out
    assert log.read_bytes().splitlines() == kept
    assert log.stat().st_mode & 0o777 == 0o600
    said(writer, "b", (SEEKER, "still here", (), 200.0))
    assert [talk["conversationId"] for talk in read_feedback(log)[0]] == ["b", "c"]
    assert len(log.read_bytes().splitlines()) == len(kept) + 1
    assert [path.name for path in log.parent.glob("talks*")] == ["talks.jsonl"]
    before = log.read_bytes()
    for line, said_of in (
        ([f"--log={log}", "--forget=a"], "--forget=a: .*talks.jsonl has no talk of this id"),
        ([f"--log={log}", "--forget=b c"], "has no talk of this id"),
        (["--log=/nowhere/x.jsonl", "--forget=a"], "--log=/nowhere/x.jsonl: cannot be changed"),
        ([f"--log={log}"], "--workdir and --out are needed, or --forget"),
    ):
        with pytest.raises(InputError, match=said_of):
            collect.main(line)
    assert log.read_bytes() == before


def test_forgetting_and_writing_at_once_lose_nothing(tmp_path):
    path = tmp_path / "talks.jsonl"
    writer = FeedbackWriter(path, CATALOGUE)
    for number in range(20):
        said(writer, f"old-{number}", (SEEKER, "hello", (), 0.0))

    def write_on() -> None:
        for number in range(200):
            said(writer, "new", (SEEKER, f"{number}", (), float(number)))

    writing = threading.Thread(target=write_on)
    writing.start()
    for number in range(20):
        feedback.forget(path, f"old-{number}")
    writing.join()
    (talk,), broken = read_feedback(path)
    assert [message["text"] for message in talk["messages"]] == [str(number) for number in range(200)]
    assert broken == []


APPEND = """
import pathlib, sys
sys.path.insert(0, "tests/tools/chat")
from test_feedback import CATALOGUE, SEEKER, FeedbackWriter, said
writer = FeedbackWriter(pathlib.Path(sys.argv[1]), CATALOGUE)
said(writer, sys.argv[2], *[(SEEKER, sys.argv[2] * 20_000, (), float(n)) for n in range(20)])
"""


def test_several_processes_write_whole_lines(tmp_path):
    path = tmp_path / "talks.jsonl"
    line = [sys.executable, "-c", APPEND, str(path)]
    writers = [subprocess.Popen([*line, name], cwd=ROOT) for name in "xyz"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    talks, broken = read_feedback(path)
    assert broken == []
    assert sorted((talk["conversationId"], len(talk["messages"])) for talk in talks) == [(n, 20) for n in "xyz"]


def test_what_cannot_be_used_is_one_clear_error(log, corpus_dir, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"name a \.jsonl file"):
        FeedbackWriter(tmp_path / "talks.txt", CATALOGUE)
    with pytest.raises(InputError, match="cannot be written"):
        FeedbackWriter(tmp_path / "nowhere" / "talks.jsonl", CATALOGUE)
    with pytest.raises(InputError, match="whose items are numbers; here one is 'Alien'"):
        FeedbackWriter(tmp_path / "t.jsonl", Catalogue((Item("Alien", "Alien"),)))
    with pytest.raises(InputError, match="is there already"):
        collect.collect([log], corpus_dir, corpus_dir)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(InputError, match="no talk is in it"):
        collect.collect([empty], corpus_dir, tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        read_feedback(tmp_path / "none.jsonl")
    for bad, named in (([1], "is no object"), ({"dialogue": 3}, "dialogue is 3"), ({"role": "user"}, "role is 'user'")):
        good = json.loads(log.read_text().splitlines()[0])
        empty.write_text(json.dumps({**good, **bad} if isinstance(bad, dict) else bad) + "\n")
        with pytest.raises(InputError, match=rf"line 1: {named}"):
            read_feedback(empty)
    assert feedback.FLAG == "--log"


def test_the_program_adds_talks_to_the_runs_own_corpus(finished_run, tmp_path):
    """Of a run on the embedded corpus, whose files lie in its workdir."""
    names = {item.item_id: item.name for item in load_catalogue(finished_run).items}
    catalogue = Catalogue(tuple(Item(item_id, name) for item_id, name in names.items()))
    item = next(iter(names))
    writer = FeedbackWriter(tmp_path / "talks.jsonl", catalogue)
    writer.write("t", "ppo", (Turn(SEEKER, f"like {MENTION}", (item,)), 5.0), (Turn(RECOMMENDER, "ok"), 6.0))
    line = [sys.executable, "-m", "crs_jax.chat.collect", f"--log={tmp_path / 'talks.jsonl'}",
            f"--workdir={finished_run}", f"--out={tmp_path / 'out'}"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 talks with 2 messages" in done.stdout
    corpus = corpus_of(tmp_path / "out", tmp_path / "cache")
    assert corpus.train[-1].turns[0] == Turn(SEEKER, f"like {MENTION}", (item,), 0.0)
    assert {i.item_id for i in corpus.catalogue.items} == set(names)
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("error: --out=")
    assert again.stderr.count("\n") == 1


def load_catalogue(workdir: pathlib.Path) -> Catalogue:
    movies = dict(redial.movie_list(workdir / "data" / redial.MOVIES, redial.Faults("raise")))
    return Catalogue(tuple(movies.values()))
