"""Every command line of the README is one that its program takes; what the programs do is tested beside each of them.

The section "From a laptop to a pod" has tests of its own (tests/launch/test_readme.py).
"""

import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

from crs_jax.data import imdb
from crs_jax.flags import parse
from crs_jax.runtime import program
from crs_jax.tools.chat import collect
from crs_jax.tools.chat import program as chat
from crs_jax.tools.export import program as export

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
HERE = re.sub(r"## From a laptop to a pod\n.*?\n(?=## )", "", TEXT, flags=re.DOTALL)
FENCED = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", HERE, re.DOTALL | re.MULTILINE)
BLOCKS = [block for _, language, block in FENCED if not language]
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
LINES += re.findall(r"`((?:python -m crs_jax|launch/)[^`]* --[^`.]*)`", HERE)
COMMANDS = {"python": r"python -m crs_jax\.(\S+)", "shell": r"(launch/\w+\.sh)", "hub": r"(hf upload) \S+ \S+$"}
PROGRAMS = {"chat": chat.main, "chat.collect": collect.main, "export": export.main, "data.imdb": imdb.main}


class ParsedError(Exception):
    """Carries what a program's flags came to."""


def words(line: str) -> tuple[str, list[str]]:
    """The program, and its arguments without the remark behind them."""
    found = shlex.split(line, comments=True)
    if found[:2] == ["python", "-m"]:
        return found[2].removeprefix("crs_jax."), found[3:]
    return found[0], found[1:]


COMMAND_LINES = [line for line in LINES if re.match("|".join(COMMANDS.values()), line.partition("  #")[0].strip())]


def test_no_line_is_left_out():
    blocks = [block for block in BLOCKS if re.match("python|launch", block)]
    assert {line for block in blocks for line in block.splitlines() if line.strip()} <= set(COMMAND_LINES)
    assert len(COMMAND_LINES) > 12


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_is_one_that_its_program_takes(line, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    name, argv = words(line)
    argv = [re.sub("FOLDER|data/with_talks", str(tmp_path), word) for word in argv]
    (tmp_path / "movies_metadata.json").write_text("{}")
    if name in ("main", "launch/local.sh"):
        given = (
            argv if any(word.startswith("--config=") for word in argv) else ["--config=configs/quickstart.py", *argv]
        )
        if "--helpfull" not in argv:
            assert parse(["main", *given], flags.FlagValues()).config.stages
    elif name in PROGRAMS:
        original = program.Parser.parse_args

        def parsing(self, *arguments):
            raise ParsedError(original(self, *arguments))

        monkeypatch.setattr(program.Parser, "parse_args", parsing)
        with pytest.raises(ParsedError) as met:
            PROGRAMS[name](argv)
        assert "--workdir" not in line or met.value.args[0].workdir.startswith(("runs/", "shared/"))
    elif name == "sweep":
        assert {word.partition("=")[0] for word in argv} == {"--sweep", "--out", "--config.data.dir"}
        assert (ROOT / argv[0].partition("=")[2]).is_file()
    elif name.startswith("benchmark"):
        module = importlib.import_module(f"crs_jax.{name}" + (".__main__" if name == "benchmark" else ""))
        for word in argv:
            flag = word.partition("=")[0]
            assert flag.startswith("--config") or re.search(
                rf"^  (--\w+, )*{flag}\b|[ ,]{flag}\b", module.__doc__, re.M
            )
    else:
        assert name == "launch/test.sh" or line.startswith("hf upload OWNER/NAME shared/")
