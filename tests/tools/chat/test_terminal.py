"""The talk in a terminal: scripted through pipes, and what it prints."""

import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import crs_jax
from crs_jax.runtime.arguments import MOST_SEED
from crs_jax.runtime.program import run_program
from crs_jax.tools.chat import page, terminal
from crs_jax.tools.chat.conversation import Answer, Conversation, Talker
from crs_jax.tools.chat.program import main, options

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(finished_run) -> crs_jax.Run:
    return crs_jax.load(finished_run)


def script(*lines: str, finished_run, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "crs_jax.chat", f"--workdir={finished_run}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, input="\n".join(lines), cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_scripted_talk(run, finished_run, tmp_path):
    """Replies are those of the API with the same seed; commands work; the end of the input ends it."""
    top = run.recommend([("user", "Hi!")], top=2)
    lines = ("Hi!", "", f"I saw {top[0].title}", "/top 2", "/reset", "Hi!", "/what", "/temperature 0", "Hi\x1b[31m")
    done = script(*lines, finished_run=finished_run, flags=("--seed=4", "--model=ppo"))
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "compiling" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("ready in ")
    expected = run.reply([("user", "Hi!")], temperature=0.7, seed=4 * 1_000_003 + 1)
    assert words(out).count(words(f"ppo> {terminal.plain(expected.text)}")) == 2  # and again after /reset
    first, second = out.split("you> Hi!")[1:]
    assert top[0].title in first.split("you> I saw")[0]
    assert f"{top[0].probability:.1%}" in first
    assert terminal.HELP in second
    assert all(f"{name} " in first for name in ("engagement", "relevance", "sentiment", "reward"))
    assert len(re.findall(r" [0-9.]+%$", second.split("you>")[0], re.MULTILINE)) == 2
    assert "\x1b" not in out


def words(text: str) -> str:
    return "".join(text.split())


def test_both_side_by_side_and_one_below_the_other(run):
    talker, talk = Talker({name: run.using(name) for name in ("sft", "ppo")}), Conversation()
    talker.hear(talk, "Hello, something funny?")
    answers = dict(talker.answer(talk, 1.0))
    wide, narrow = terminal.beside(answers, 100), terminal.beside(answers, 40)
    assert wide[0].startswith("sft> ")
    assert "ppo> " in wide[0]
    assert not any("sft> " in line and "ppo> " in line for line in narrow)
    for width, lines in ((100, wide), (40, narrow)):
        assert max(map(len, lines)) <= width
        for name, answer in answers.items():
            shown = words("".join(lines))
            assert answer.score is not None
            assert f"{answer.score.signals['engagement']:+.2f}" in shown
            assert all(words(f"{item.probability:.1%}") in shown for item in answer.reply.top), name
    one = terminal.beside({"sft": answers["sft"]}, 80)
    assert all(item.title in "\n".join(one) for item in answers["sft"].reply.top)
    assert max(map(len, one)) <= 80


def test_an_unknown_title_is_said_to_be_unknown_and_the_talk_goes_on(run, monkeypatch, capsys):
    lines = iter(['I loved "Xyzzy <B>Nights"!', "Hello!", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    talker = Talker({"ppo": run})
    terminal.talk(talker, 0.7)
    first, second = capsys.readouterr().out.split("\nHello!\n")
    assert first.count('I do not know "Xyzzy <B>Nights".') == 1
    assert first.count("ppo> ") == 1
    assert "I do not know" not in second
    talk = Conversation()
    talker.hear(talk, 'I loved "Xyzzy <B>Nights"!')
    ((_, answer),) = talker.answer(talk, 0.7)
    assert [title.title for title in answer.reply.unlinked] == ["Xyzzy <B>Nights"]
    assert "I do not know &quot;Xyzzy &lt;B&gt;Nights&quot;." in page.column(talk, "ppo")


def test_the_two_policies_go_on_from_their_own_replies(run):
    talker, talk = Talker({name: run.using(name) for name in ("sft", "ppo")}), Conversation()
    for text in ("Hello", "more"):
        talker.hear(talk, text)
        dict(talker.answer(talk, 1.0))
    for name in ("sft", "ppo"):
        own = [answer.reply.turn for answer in talk.answers[name]]
        assert talk.turns(name)[1::2] == own
        assert own[1] == run.using(name).reply(talk.turns(name)[:3], seed=2).turn


def test_nothing_steers_the_terminal():
    assert terminal.plain("a\x1b[2J\x07b\u202ec\n d\x9b") == "a\ufffd[2J\ufffdb\ufffdc d\ufffd"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--workdir is missing"),
        (("--workdir=x", "--model=gpt"), "--model=gpt"),
        (("--workdir=x", "--temperature=-1"), "--temperature=-1.0"),
        (("--workdir=x", "--temperature=warm"), "invalid float value: 'warm'"),
        (("--workdir=x", "--temperature=1e7"), "--temperature=10000000.0: take 0, or a number from 1e-06 to 1,000,000"),
        (("--workdir=x", "--temperature=1e-9"), "--temperature=1e-09: take 0, or a number from 1e-06 to 1,000,000"),
        (("--workdir=x", "--temperature=nan"), "--temperature=nan: take a number of at least 0"),
        (("--workdir=x", "--seed=10000000000000"), "--seed=10000000000000: take at least 0 and at most 4294967295"),
        (("--workdir=x", "--seed=-1"), "--seed=-1: take at least 0"),
        (("--workdir=x", "--port=65536"), "--port=65536: take at least 0 and at most 65535"),
        (("--workdir=x", "--top=0"), "--top=0"),
        (("--workdir=x", "--wed"), "--wed"),
    ],
)
def test_flags_that_cannot_be_used_are_named(flags, said):
    with pytest.raises(crs_jax.InputError, match=re.escape(said)):
        options(flags)


def test_every_seed_that_is_taken_gives_replies(run):
    """The greatest one too; no two seeds share a first reply."""
    assert options(["--workdir=x", f"--seed={MOST_SEED}"]).seed == MOST_SEED
    talk = Conversation()
    talker = Talker({"ppo": run}, seed=MOST_SEED)
    talker.hear(talk, "Hi!")
    ((_, answer),) = talker.answer(talk, 0.7)
    wrapped = (MOST_SEED * 1_000_003 + 1) & 0xFFFFFFFF
    assert answer.reply == run.reply([("user", "Hi!")], temperature=0.7, seed=wrapped)


@pytest.mark.parametrize(
    "line",
    ["/temperature 1e-9", "/temperature 1e7", "/temperature nan", "/temperature -1", "/temperature warm", "/top 0",
     "/top \u00b2", "/top -1", "/top 1.5", f"/top {'9' * 5000}"],
)  # fmt: skip
def test_a_command_that_cannot_be_used_shows_the_help_and_changes_nothing(line, monkeypatch, capsys):
    """The value before stays for the next reply."""
    lines = iter([line, "Hi", "/temperature 1e-6", "/top 3", "Hi", "/temperature 0", "Hi", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    used = []

    class Recorder:
        top = 5

        def hear(self, talk, text):
            return True

        def answer(self, talk, temperature):
            used.append((temperature, self.top))
            reply = types.SimpleNamespace(unlinked=(), text="x", top=())
            return {"ppo": Answer(reply, None, 0.0)}

    terminal.talk(Recorder(), 0.7)
    assert used == [(0.7, 5), (1e-6, 3), (0.0, 3)]
    assert capsys.readouterr().out.count(terminal.HELP) == 1


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chat", f"--workdir={tmp_path / 'nothing'}"])
    assert run_program(main) == 2
    assert re.fullmatch(r"error: --workdir=.*: there is no such folder; .*\n", capsys.readouterr().err)


def test_two_models_are_not_logged(run, tmp_path):
    from crs_jax.tools.chat.feedback import FeedbackWriter

    writer = FeedbackWriter(tmp_path / "talks.jsonl", run.catalogue)
    with pytest.raises(crs_jax.InputError, match="label of neither"):
        Talker({name: run.using(name) for name in ("sft", "ppo")}, log=writer)
    assert options(["--workdir=x", "--web"]).model == "both"
    assert options(["--workdir=x", "--web", "--log=t.jsonl"]).model == "ppo"
    assert options(["--workdir=x"]).host == "127.0.0.1"
