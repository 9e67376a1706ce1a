"""The page in headless Chromium, end to end: what people do, what they see, what is logged, and that nothing leaves."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import chromium
import pytest
from waits import HANGS

import crs_jax
from configs.redial_ppo import get_config
from crs_jax.data.corpus import load
from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.signals.engagement import EngagementModel
from crs_jax.tools.chat import page, web
from crs_jax.tools.chat.conversation import Conversation, Talker
from crs_jax.tools.chat.feedback import FeedbackWriter

ROOT = pathlib.Path(__file__).resolve().parents[3]
HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror=window.pwned=2> ${7*7} {{7*7}} ![x](http://example.com/x.png)"
)


@pytest.fixture(scope="module")
def run(finished_run) -> crs_jax.Run:
    run = crs_jax.load(finished_run)
    run.warm_up()
    return run


def wait(condition):
    """What the condition gives once it is true."""
    until = time.monotonic() + HANGS
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {HANGS} s")


def box(driver):
    found = driver.find_elements("css selector", "#message textarea, #message input")
    return found[0] if found and found[0].is_displayed() else None


def texts(driver, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", selector
    )


def say(driver, text: str, models: tuple[str, ...]) -> None:
    """Sends a message and waits for each model's reply to it."""
    before = len(texts(driver, f".talk.{models[0]} .seeker"))
    wait(lambda: box(driver)).send_keys(text + "\n")
    for model in models:
        wait(lambda model=model: len(texts(driver, f".talk.{model} .recommender .signals")) == before + 1)
        wait(lambda model=model: len(texts(driver, f".items.{model} tbody tr")) > 0)


@pytest.fixture
def connections(monkeypatch) -> list:
    """Hosts that this process looks up or connects to."""
    seen, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def connecting(self, address):
        seen.append(address[0] if isinstance(address, tuple) else "unix")
        return connect(self, address)

    def looking_up(host, *rest, **more):
        seen.append(host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    return seen


def test_both_models_talk_side_by_side_and_nothing_leaves(run, connections):
    models = ("sft", "ppo")
    app, url = web.start(Talker({name: run.using(name) for name in models}, top=5), "127.0.0.1", 0, 1.0)
    try:
        with chromium.browser() as driver:
            driver.get(url)
            say(driver, "Hi! Something funny for tonight?", models)
            first = {name: run.using(name).recommend([("user", "Hi! Something funny for tonight?")]) for name in models}
            for name in models:
                rows = texts(driver, f".items.{name} tbody tr td")
                expected = [
                    cell
                    for i in first[name]
                    for cell in (i.title, str(i.year or ""), ", ".join(i.genres), f"{i.probability:.1%}")
                ]
                assert rows == expected
                (signals,) = texts(driver, f".talk.{name} .recommender .signals")
                assert re.findall(r"[a-z]+(?=\s+[-+])", signals) == ["engagement", "relevance", "sentiment", "reward"]
            left, right = (driver.find_element("css selector", f".talk.{name}").rect for name in models)
            assert left["y"] == right["y"]
            assert left["x"] + left["width"] <= right["x"]

            say(driver, HOSTILE, models)
            assert texts(driver, ".talk.ppo .seeker p")[1] == HOSTILE
            assert driver.execute_script("return window.pwned") is None
            assert driver.find_elements("css selector", ".page img, .page script, .page a") == []

            loved = first["sft"][0]
            say(driver, f"I loved {loved.title.lower()}", models)
            assert texts(driver, ".talk.sft .seeker p")[2] == f"I loved {loved.name}"  # linked, so with its year
            assert loved.title not in texts(driver, ".items.sft tbody td.title")

            chromium.resize(driver, 390, 900)
            assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
            tops = [driver.find_element("css selector", f".talk.{name}").rect["y"] for name in models]
            assert tops[1] > tops[0] + 100
            readable(driver, dark=False)
            chromium.resize(driver, 1280, 900)

            driver.find_element("css selector", "#anew").click()
            wait(lambda: not texts(driver, ".talk .seeker"))
            assert texts(driver, ".items tbody tr") == []
            chromium.prefer_dark(driver)
            driver.refresh()
            say(driver, "Hello again!", models)
            assert len(texts(driver, ".talk.ppo .seeker")) == 1
            readable(driver, dark=True)

            for owner, limit, told in (
                (web, "WAITING_EACH", "Please wait: what you sent before is not answered yet."),
                (app._queue, "max_size", "This application is currently busy. Please try again."),
            ):
                with pytest.MonkeyPatch.context() as full:
                    full.setattr(owner, limit, 0)
                    wait(lambda: box(driver)).send_keys("more\n")
                    wait(lambda told=told: told in "".join(texts(driver, ".toast-body")))
            assert len(texts(driver, ".talk.ppo .seeker")) == 1
            outside = {u for u in chromium.requested(driver) if not u.startswith((url, "data:", "blob:", "chrome"))}
            assert outside == set()
            failed = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
            assert [message.partition(" - ")[0].rpartition("/")[2] for message in failed] == ["join?"] * 2  # as told
    finally:
        app.close(verbose=False)
    assert set(connections) <= {"127.0.0.1", "localhost", "::1", "unix", None}


def readable(driver, dark: bool) -> None:
    """Words stand out from what is behind them, in the colours that the reader prefers."""
    colours = driver.execute_script("""
        const of = (place, what) => getComputedStyle(document.querySelector(place))[what];
        return [[of('.talk h2', 'color'), of('body', 'backgroundColor')],
                [of('.talk .recommender > p', 'color'), of('.talk .recommender > p', 'backgroundColor')],
                [of('.talk .seeker > p', 'color'), of('.talk .seeker > p', 'backgroundColor')]]""")
    assert all(contrast(*pair) > 4.5 for pair in colours), colours
    assert (luminance(colours[0][1]) < 0.2) == dark


def luminance(text: str) -> float:
    """Of `rgb(1, 2, 3)`."""
    assert text.startswith("rgb(")
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
              for c in (int(x) / 255 for x in re.findall(r"\d+", text))]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours as browsers write them."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


def test_the_command_serves_this_machine_alone_and_what_it_logs_is_trained_on(finished_run, tmp_path):
    log = tmp_path / "talks.jsonl"
    line = [sys.executable, "-m", "crs_jax.chat", f"--workdir={finished_run}", "--web", "--port=0", f"--log={log}"]
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "TMPDIR": str(tmp_path / "temporary")}
    server = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = []
        for text in server.stdout:
            said.append(text)
            if found := re.search(r"open (http://127\.0\.0\.1:(\d+)) ", text):
                break
        else:
            raise AssertionError("".join(said))
        url, port = found[1], int(found[2])
        assert any("compiling" in text for text in said)
        assert any(str(log) in text for text in said)
        with urllib.request.urlopen(url) as answer:
            assert "connect-src 'self'" in answer.headers["content-security-policy"]
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
        with chromium.browser() as driver:
            driver.get(url)
            wait(lambda: texts(driver, ".page .kept"))
            assert "is kept to train on" in texts(driver, ".page .kept")[0]
            say(driver, "this is nobody's business", ("ppo",))
            driver.find_element("css selector", "#agreed input").click()
            say(driver, "nor is what comes later in this talk", ("ppo",))
            assert texts(driver, ".page.id code") == []
            driver.find_element("css selector", "#anew").click()
            wait(lambda: not texts(driver, ".talk .seeker"))
            say(driver, "Hello, something funny? @12345", ("ppo",))
            time.sleep(1.5)
            say(driver, "no thanks, something else", ("ppo",))
            say(driver, "sounds good", ("ppo",))
            assert texts(driver, ".talk.sft") == []
            kept_as = wait(lambda: texts(driver, ".page.id code"))
            driver.find_element("css selector", "#agreed input").click()
            say(driver, "and this is mine again", ("ppo",))
            agent = driver.execute_script("return navigator.userAgent")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stdout.read() == ""  # of no visitor
    finally:
        server.kill()
        server.stdout.close()
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert [entry["role"] for entry in lines] == [SEEKER, RECOMMENDER] * 3
    assert {entry["dialogue"] for entry in lines} == set(kept_as)
    assert {name for entry in lines for name in entry} == {"dialogue", "model", "role", "time", "text", "items"}
    left = [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    for word in ("127.0.0.1", agent, "business", "this talk", "mine again"):
        assert not any(word.encode() in path.read_bytes() for path in [log, *left]), word
    collected = subprocess.run(
        [sys.executable, "-m", "crs_jax.chat.collect", f"--log={log}", f"--workdir={finished_run}",
         f"--out={tmp_path / 'data'}"], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert collected.returncode == 0, collected.stderr
    config = get_config("scratch")
    with config.unlocked():
        config.data.dir, config.data.validation_dialogues = str(tmp_path / "data"), 0
    corpus = load(config, tmp_path / "cache")
    (talk,) = [dialogue for dialogue in corpus.train if dialogue.dialogue_id == lines[0]["dialogue"]]
    assert [turn.text for turn in talk.turns if turn.role == SEEKER] == [
        "Hello, something funny? @ 12345", "no thanks, something else", "sounds good",
    ]  # fmt: skip
    gap = talk.turns[2].seconds - talk.turns[1].seconds
    assert 1.5 <= gap < 20
    model = EngagementModel.fit(corpus.train)
    (dwell,) = model.parts([talk])["dwell"]
    assert sum(abs(value) < 20 for value in dwell) == 2  # known for the replies that were answered
    earlier = list(talk.turns)
    longer = [dataclasses.replace(turn, seconds=turn.seconds + 60 * (n > 1)) for n, turn in enumerate(earlier)]
    (stayed,) = model.parts([dataclasses.replace(talk, turns=tuple(longer))])["dwell"]
    assert stayed[1] > dwell[1]


def test_an_address_that_is_taken_is_one_clear_error(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(crs_jax.InputError, match="cannot be served there"):
            web.start(Talker({"sft": run.using("sft")}), "127.0.0.1", taken.getsockname()[1], 1.0)
    with pytest.raises(crs_jax.InputError, match=r"--host=no\.such\.host"):
        web.start(Talker({"sft": run.using("sft")}), "no.such.host", 0, 1.0)


def test_two_talks_are_kept_apart(run):
    """What one person says is not in another's talk: sessions of their own."""
    talker = Talker({"sft": run.using("sft")})
    one, other = Conversation(), Conversation()
    assert talker.hear(one, "first")
    assert talker.hear(other, "second")
    assert "second" not in page.column(one, "sft")
    assert not talker.hear(one, " \ufffc ")
    dict(talker.answer(one, 1.0))
    assert [turn.role for turn in one.turns("sft")] == [SEEKER, RECOMMENDER]
    assert [turn.role for turn in other.turns("sft")] == [SEEKER]


def test_a_message_that_could_not_be_answered_by_all_leaves_no_trace(run, monkeypatch):
    """So that what comes next is answered to what was said before it."""
    talker, talk = Talker({name: run.using(name) for name in ("sft", "ppo")}), Conversation()
    talker.hear(talk, "first")
    dict(talker.answer(talk, 1.0))
    before = {name: talk.turns(name) for name in talker.runs}
    talker.hear(talk, "second")
    answering = talker.answer(talk, 1.0)
    assert next(answering)[0] == "sft"
    answering.close()  # as when the page is closed
    assert {name: talk.turns(name) for name in talker.runs} == before
    talker.hear(talk, "third")
    monkeypatch.setattr(talker.runs["ppo"], "score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dict(talker.answer(talk, 1.0))
    assert {name: talk.turns(name) for name in talker.runs} == before
    assert len(talk.words) == 1


def test_what_is_cut_off_leaves_no_line_in_the_log(run, tmp_path, monkeypatch):
    """A page closed before the reply was shown, a model that fails, a full disk; nor do those who did not agree."""
    log = FeedbackWriter(tmp_path / "talks.jsonl", run.catalogue)
    talker, talk = Talker({"ppo": run}, log=log), Conversation(agreed=True)
    talker.hear(talk, "closed before")
    assert (talker.hear(talk, "closed at the reply"), len(talk.user)) == (True, 1)
    answering = talker.answer(talk, 1.0)
    next(answering)
    answering.close()
    talker.hear(talk, "fails")
    with monkeypatch.context() as broken:
        broken.setattr(run, "reply", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dict(talker.answer(talk, 1.0))
    talker.hear(talk, "not kept")
    with monkeypatch.context() as full:
        full.setattr(log, "write", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            dict(talker.answer(talk, 1.0))
    assert (talk.user, talk.words, talk.turns("ppo"), talk.logged_as) == ([], [], [], "")
    assert log.path.read_bytes() == b""
    talker.hear(talk, "whole")
    dict(talker.answer(talk, 1.0))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["role"], line["dialogue"]) for line in lines] == [
        (SEEKER, talk.logged_as),
        (RECOMMENDER, talk.logged_as),
    ]
    assert lines[0]["text"] == "whole"
    silent = Conversation()
    talker.hear(silent, "unheard")
    dict(talker.answer(silent, 1.0))
    assert silent.logged_as == ""
    assert len(log.path.read_text().splitlines()) == 2


def test_a_message_that_cannot_be_kept_is_given_back(run, tmp_path, monkeypatch):
    log = FeedbackWriter(tmp_path / "talks.jsonl", run.catalogue)
    talker, warned = Talker({"ppo": run}, log=log), []
    app = web.build(talker, 0.7)
    respond = next(fn.fn for fn in app.fns.values() if fn.fn.__name__ == "respond")
    monkeypatch.setattr("gradio.Warning", warned.append)
    monkeypatch.setattr(log, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    talk = Conversation()
    *_, (text, _, column, _, kept) = respond("hello", 0.7, talk, True)
    assert text == "hello"
    assert "hello" not in column
    assert "<code>" not in kept
    assert warned == ["What you said could not be kept (No space left on device), so it does not count. Send it again."]
    *_, (text, _, column, _, _) = respond("hello", 0.7, Conversation(), False)
    assert (text, "hello" in column, len(warned)) == ("", True, 1)


def test_every_hostile_reply_is_text(run):
    """Also what a model says, and what a catalogue holds."""
    talker = Talker({"sft": run.using("sft")})
    talk = Conversation()
    talker.hear(talk, "hi")
    ((_, answer),) = talker.answer(talk, 1.0)
    item = dataclasses.replace(answer.reply.top[0], title=HOSTILE, genres=("<b>",))
    reply = dataclasses.replace(answer.reply, text=HOSTILE, top=(item,))
    talk.answers["sft"] = [dataclasses.replace(answer, reply=reply)]
    for html in (page.column(talk, "sft"), page.items(talk, "sft")):
        assert "&lt;script&gt;" in html
        assert not re.search(r"<(script|img|b)\b", html)


def test_no_web_framework_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(crs_jax.InputError, match=r"\[chat\]"):
        web.require_gradio()
