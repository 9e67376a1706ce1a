"""Adds logged talks to the dialogues that a run was trained on, as a folder to train on; or forgets a talk."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from collections.abc import Sequence

from crs_jax.data import redial
from crs_jax.data.corpora import CORPORA
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.program import Parser
from crs_jax.stored_config import read_config
from crs_jax.tools.chat.feedback import forget, read_feedback
from crs_jax.tools.export import shared_model


def corpus_folder(workdir: pathlib.Path, data_dir: str = "") -> pathlib.Path:
    """Where the files of a run's corpus are; `InputError` where they are not ReDial's."""
    if shared_model(workdir):
        raise InputError(f"--workdir={workdir}: an exported folder has no dialogues; name the run that it came from")
    config = read_config(workdir)
    if CORPORA[config.data.dataset].reader is not redial:
        raise InputError(f"--workdir={workdir}: talks join a corpus in ReDial's format; this is {config.data.dataset}")
    given = data_dir or config.data.dir or ("" if config.data.hub else str(workdir / "data"))
    if not given:
        raise InputError(f"--workdir={workdir}: its corpus came from the hub; give ReDial's files by --data_dir=FOLDER")
    folder = pathlib.Path(given).expanduser()
    if not folder.is_dir():
        raise InputError(f"--workdir={workdir}: its corpus was in {folder}, which is gone; give --data_dir=FOLDER")
    redial.files(folder, config.data)
    return folder


def collect(logs: Sequence[pathlib.Path], folder: pathlib.Path, out: pathlib.Path) -> tuple[int, int]:
    """Writes `out`; returns how many talks and how many of their messages were added.

    Raises:
      InputError: a log or the folder cannot be read, no talk is in the logs, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out={out}: is there already; name a new folder")
    talks = []
    for path in logs:
        found, broken = read_feedback(path)
        talks += found
        for number in broken:
            print(f"note: {path}, line {number} breaks off and is left out")
    if not talks:
        raise InputError(f"--log={','.join(map(str, logs))}: no talk is in it")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in redial.files(folder, None):
        shutil.copyfile(path, part / path.name)
    train = (part / redial.TRAIN).read_bytes()
    with open(part / redial.TRAIN, "ab") as file:
        file.write(b"" if not train or train.endswith(b"\n") else b"\n")
        for talk in talks:
            file.write((json.dumps(talk) + "\n").encode())
    if out.exists():
        out.rmdir()
    part.rename(out)
    return len(talks), sum(len(talk["messages"]) for talk in talks)


def main(argv: Sequence[str]) -> None:
    """Reads the flags and does it."""
    parser = Parser(prog="python -m crs_jax.chat.collect",
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--log", required=True, help=argparse.SUPPRESS)
    for name in ("workdir", "out", "data_dir", "forget"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.forget:
        lines = forget(pathlib.Path(given.log), given.forget)
        print(f"{given.log}: {lines} messages of talk {given.forget} are forgotten; folders collected before have them")
        return
    if not given.workdir or not given.out:
        parser.error("--workdir and --out are needed, or --forget")
    folder = corpus_folder(pathlib.Path(given.workdir).expanduser(), given.data_dir)
    out = pathlib.Path(given.out).expanduser()
    talks, messages = collect([pathlib.Path(path) for path in given.log.split(",")], folder, out)
    print(f"{out}: {talks} talks with {messages} messages stand behind the training dialogues of {folder}")
