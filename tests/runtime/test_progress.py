"""Progress in a log file: few lines, 80 columns, the right numbers; on a terminal: a bar."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from crs_jax.runtime.progress import Progress, duration, print_summary, print_table, say, table_lines


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_ten_seconds_and_at_the_end(capsys):
    clock = Clock()
    with Progress(100, "Supervised fine-tuning", clock=clock) as progress:
        for step in range(100):
            clock.now += 0.5
            progress.update(1, loss=step / 10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Supervised fine-tuning: 20/100 steps  40 s left  2 steps/s  loss 1.9"
    assert lines[-1] == "Supervised fine-tuning: 100/100 steps  in 50 s  2 steps/s  loss 9.9"
    assert len(lines) == 5  # the end is said once


def test_slow_units_and_resumed_work_count_right(capsys):
    clock = Clock()
    with Progress(10, "PPO", "iterations", done=6, clock=clock) as progress:
        clock.now += 30
        progress.update(2, reward=float("nan"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PPO: 8/10 iterations  30 s left  15 s each  reward nan"


def test_what_the_first_step_took_to_compile_is_no_estimate():
    clock = Clock()
    progress = Progress(400, "supervised fine-tuning", clock=clock)
    clock.now += 15
    progress.update()
    assert progress.line() == "supervised fine-tuning: 1/400 steps  15 s each"
    clock.now += 1
    progress.update(4)
    assert "5/400 steps  1:39 min left" in progress.line()


def test_a_line_fits_80_columns():
    clock = Clock()
    progress = Progress(10**9, "Encoding the utterances of the training split", "texts", clock=clock)
    clock.now += 1
    progress.update(10**8, **{f"value_{i}": i / 3 for i in range(20)})
    assert 60 < len(progress.line()) <= 80


@pytest.mark.parametrize("width", [30, 40, 60])
def test_a_line_fits_a_narrow_terminal_and_says_how_far_and_how_long(width):
    clock = Clock()
    progress = Progress(420, "supervised fine-tuning", clock=clock)
    clock.now += 91
    progress.update(210, loss=2.5, other=1.0)
    line = progress.line(width=width)
    assert len(line) <= width
    assert "210/420" in line
    assert "1:31 min left" in line
    assert line.startswith("supe")
    assert ("steps" in line) is (width == 60)


def test_what_took_no_time_leaves_no_line_in_a_log_file(capsys):
    clock = Clock()
    for seconds in (0.1, 0.9):
        with Progress(3, f"{seconds}", clock=clock) as progress:
            clock.now += seconds
            progress.update(3)
    with pytest.raises(KeyError), Progress(3, "failed", clock=clock):
        raise KeyError
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["0.9", "failed"]


def test_nothing_is_shown_by_other_processes(capsys):
    with Progress(3, "x", enabled=False, clock=iter(range(99)).__next__) as progress:
        progress.update(3, loss=1.0)
    print_table("t", ["a"], [["b"]], enabled=False)
    print_summary("t", {"a": 1}, enabled=False)
    say("x", enabled=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1:00 min"), (187, "3:07 min"), (3599.9, "1:00 h"), (3780, "1:03 h"),
     (float("nan"), "?"), (float("inf"), "?")],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_plain_table_lines_up_and_goes_on_below_when_too_wide(capsys):
    columns = ["row", *(f"measure@{i}" for i in range(12))]
    rows = [["sft", *(f"{i / 7:.3f}" for i in range(12))], ["popularity", *("1" for _ in range(12))]]
    print_table("Ranking", columns, rows)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for _, cell in zip(range(12), rows[0][1:], strict=True):
        assert cell in out
    blocks = out.split("\n\n")
    assert sum(block.count("popularity") for block in blocks) == sum(block.count("row") for block in blocks) == 2
    head, _, first, second = next(block for block in blocks if "measure@0" in block).splitlines()[-4:]
    assert len(first) == len(second) == len(head)


def test_summary_prints_mappings_and_thousands(capsys):
    print_summary("Run", {"mesh": {"data": 8, "fsdp": 1}, "parameters": 4513792, "stages": ["sft", "ppo"]})
    assert capsys.readouterr().out.splitlines() == [
        "Run",
        "  mesh        data 8, fsdp 1",
        "  parameters  4,513,792",
        "  stages      sft, ppo",
    ]


def test_tables_stand_one_blank_line_apart(capsys):
    for _ in range(2):
        print_table("T", ["a", "b"], [["1", "2"]])
    assert "\n\n\n" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [24, 40])
def test_a_table_is_as_wide_as_it_may_be(width):
    rows = [["within-window", "0.7500 (0.4", "1"], ["beyond-window", "0.25", "2"]]
    lines = list(table_lines(["utterances before", "a measure", "n"], rows, width))
    assert max(map(len, lines)) <= width
    for cell in ("0.7500 (0.4", "0.25", "1", "2"):
        assert any(line.split("  ")[-1].strip() == cell or cell in line for line in lines)


SCRIPT = """
from crs_jax.runtime.progress import Progress, print_table, say
with Progress(4, "outer [red]") as outer:
    for _ in range(2):
        with Progress(None, "inner", "texts") as inner:
            inner.update(5, loss=0.25)
        outer.update(2, reward="+[1]")
    say("a [bold]line")
print_table("T [x]", ["a [b]", "n"], [["row [c]", "1.5"]])
say("warning: a line of many words that a narrow terminal has to cut somewhere between /one/path/that/stays/whole.html")
"""


@pytest.mark.parametrize("width", [40, 100])
def test_bars_on_a_terminal(width):
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=other, stderr=other, env=environment)
    os.close(other)
    out = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        out += piece
    os.close(main)
    text = out.decode()
    assert child.wait(60) == 0, text
    for words in ("outer [red]", "inner", "4/4", "a [bold]line", "row [c]", "1.5", "/one/path/that/stays/whole.html"):
        assert words in text
    assert ("+[1]" in text) is (width == 100)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= width
