"""Programs of the package: each explains its flags at once, whatever else it would need."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from waits import HANGS

import crs_jax
from crs_jax.runtime import program

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "crs_jax").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
SLOW = {"jax", "torch", "tensorflow", "transformers", "datasets", "scipy", "orbax.checkpoint", "flax"}
INTERNAL = {"crs_jax.data.windows_tf", "crs_jax.tools.benchmark.worker"}
"""Started by others, with files for flags."""


def test_all_programs_are_found():
    assert len(PROGRAMS) >= 10
    assert {"crs_jax.main", "crs_jax.chat", "crs_jax.sweep", "crs_jax.report", "crs_jax.chat.collect"} <= set(PROGRAMS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_comes_before_everything_else(name, flag):
    """Status 0, a description, each flag with its meaning, and nothing imported that takes seconds."""
    line = [sys.executable, "-X", "importtime", "-m", name, flag]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, said) == (0, [])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & SLOW
    assert re.match(r"[A-Z][^\n]{15,}[.:]\n", done.stdout)
    if name not in INTERNAL:
        assert f"python -m {name}" in done.stdout
        assert len(described(done.stdout)) >= 1


BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def told(*arguments: str | bytes, **environment: str) -> tuple[int, str, str]:
    line = [sys.executable, "-m", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, timeout=HANGS, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_folders_of_any_name_work_where_the_locale_knows_ascii_alone(finished_run, tmp_path):
    """Arrow, orbax and safetensors take UTF-8; so do the files that are written, and what is printed."""
    workdir = shutil.copytree(finished_run, tmp_path / "é中" / "rün \U0001f3ac")
    out = tmp_path / "é中" / "geteilt ä"
    status, said, errors = told("crs_jax.export", f"--workdir={workdir}", f"--out={out}", **BARE)
    assert (status, errors) == (0, "")
    assert f"{out}: ppo of {workdir}, 24 items" in said
    assert crs_jax.load(out).catalogue
    (workdir / "report.html").unlink()
    assert told("crs_jax.report", f"--workdir={workdir}", **BARE) == (0, f"{workdir / 'report.html'}\n", "")
    assert "<title>" in (workdir / "report.html").read_text(encoding="utf-8")


def test_a_stream_that_cannot_show_a_name_escapes_it(tmp_path):
    place = tmp_path / "é"
    place.write_text("")
    line = ("crs_jax.main", "--config=configs/quickstart.py", f"--workdir={place}")
    assert told(*line, **BARE) == (2, "", f"error: --workdir={place}: this is a file; name a folder\n")
    escaped = str(place).replace("é", "\\xe9")
    assert told(*line, PYTHONIOENCODING="ascii") == (
        2,
        "",
        f"error: --workdir={escaped}: this is a file; name a folder\n",
    )


def test_a_name_that_is_not_utf8_is_told():
    """No library takes one."""
    status, _, error = told("crs_jax.main", "--config=configs/quickstart.py", b"--workdir=runs/\xff")
    assert status == 2
    assert error.startswith("error: --workdir=")
    assert "take a path in UTF-8" in error
    assert error.count("\n") == 1


def described(text: str) -> set[str]:
    """Flags that a help gives a line with a meaning."""
    lines = re.findall(r"^  ((?:--[\w.-]+(?:, )?)+) {2,}\S.{4,}", text, re.MULTILINE)
    lines += re.findall(r"^  (--[\w.-]+) \S.{4,}", text, re.MULTILINE)
    return {flag for line in lines for flag in line.split(", ")} - {"--help"}


class ReadError(Exception):
    """The flags are known."""


@pytest.mark.parametrize(
    ("command", "tool"),
    [("chat.__main__", "chat.program"), ("chat.collect", "chat.collect"), ("export", "export.program"),
     ("report", "report.page")],
)  # fmt: skip
def test_every_flag_is_described_and_every_described_one_is_there(command, tool, monkeypatch):
    known = set()

    def parse(self, *_):
        known.update(flag for flag in self._option_string_actions if flag not in ("-h", "--help"))
        raise ReadError

    monkeypatch.setattr(program.Parser, "parse_args", parse)
    with pytest.raises(ReadError):
        importlib.import_module(f"crs_jax.tools.{tool}").main([])
    assert described(importlib.import_module(f"crs_jax.{command}").__doc__) == known


def test_flags_of_the_others_are_described():
    for command, tool, also in (("benchmark.__main__", "program", {"--small"}), ("benchmark.ahead", "ahead", set())):
        flags = importlib.import_module(f"crs_jax.tools.benchmark.{tool}").FLAGS
        told = described(importlib.import_module(f"crs_jax.{command}").__doc__)
        assert told | also >= {f"--{name}" for name in flags}
