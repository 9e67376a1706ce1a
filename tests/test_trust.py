"""A run's folder from someone else: settings are checked, code runs with consent alone, nothing is written outside."""

import json
import os
import pathlib
import random
import shutil
import sys

import pytest
from hostile_files import change_json

import crs_jax
from crs_jax.runtime.arguments import command_line
from crs_jax.runtime.errors import InputError
from crs_jax.stored_config import read_config
from crs_jax.tools.chat import program as chat
from crs_jax.tools.export import program as export

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PLACED = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")
_watched: list[list[str]] = []


def _watch(event, arguments) -> None:
    if not _watched:
        return
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITES:
        _watched[-1].append(arguments[0])
    elif event in PLACED:
        _watched[-1].extend(os.fspath(each) for each in arguments if isinstance(each, str | os.PathLike))


@pytest.fixture(scope="module")
def watch():
    sys.addaudithook(_watch)  # for good: none can be taken away
    return _watched


@pytest.fixture
def workdir(finished_run, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished_run, tmp_path / "run"))


def stored(workdir: pathlib.Path, **settings) -> None:
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    for name, value in settings.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    path.write_text(json.dumps(config))


def test_code_that_a_stored_config_names_runs_with_consent_alone(workdir, tmp_path, monkeypatch):
    mine, ran = tmp_path / "mine.py", tmp_path / "ran"
    mine.write_text(f"open({str(ran)!r}, 'w').close()\ndef reward(context, reply, items):\n    return 1.0\n")
    stored(workdir, reward__function=f"{mine}:reward", reward__delta=1.0)
    for model in ("", "sft"):
        with pytest.raises(InputError, match=r"Python code, reward\.function=.*mine\.py.*give trust_code=True if"):
            crs_jax.load(workdir, model)
    for program in (chat.main, lambda argv: export.main([*argv, f"--out={tmp_path / 'out'}"])):
        with command_line(), pytest.raises(InputError, match=r"mine\.py:reward.*give --trust-code if"):
            program([f"--workdir={workdir}"])
    assert not ran.exists()
    export.main([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--trust-code"])
    assert ran.exists()
    ran.unlink()
    assert "mine.py" in (tmp_path / "out" / "crs_jax.json").read_text()
    monkeypatch.chdir(tmp_path)
    crs_jax.load(tmp_path / "out")  # holds the name, and no reward to run
    assert not ran.exists()


def test_loading_writes_in_the_folder_alone(workdir, tmp_path, watch):
    """Whatever the config names; what the caches lack, all of it here, is made again in the folder."""
    shutil.rmtree(workdir / "cache")
    outside = tmp_path / "outside"
    stored(workdir, data__cache_dir=str(outside / "cache"), data__dir=str(outside / "data"))
    watch.append([])
    try:
        crs_jax.load(workdir)
    finally:
        written = watch.pop()
    programs, relative = os.environ["JAX_COMPILATION_CACHE_DIR"], [path for path in written if path[0] != "/"]
    assert [path for path in written if not path.startswith((str(workdir), programs, "/dev/")) and path[0] == "/"] == []
    assert not any("/" in path for path in relative)  # within folders that are removed
    assert any(path.startswith(str(workdir / "cache")) for path in written)
    assert not outside.exists()
    assert list((workdir / "cache").glob(".*")) == []


def test_links_out_of_the_folder_are_not_written_through(workdir, tmp_path):
    """What has to be made again would land there."""
    target = tmp_path / "target"
    target.write_text("mine")
    (workdir / "data" / "train_data.jsonl").unlink()
    (workdir / "data" / "train_data.jsonl").symlink_to(target)
    (workdir / "data" / "simulator.json").write_text("of another version")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(InputError, match="loading writes nothing elsewhere"):
        crs_jax.load(workdir)
    assert target.read_text() == "mine"
    shutil.rmtree(workdir / "data")
    shutil.rmtree(workdir / "cache")
    (workdir / "cache").symlink_to(elsewhere)
    with pytest.raises(InputError, match="loading writes nothing elsewhere"):
        crs_jax.load(workdir)
    assert list(elsewhere.iterdir()) == []


def test_another_simulated_corpus_is_not_written_over(workdir, tmp_path):
    other = pathlib.Path(shutil.copytree(workdir / "data", tmp_path / "other"))
    assert crs_jax.load(workdir, data_dir=other).can_score
    stored(workdir, simulator__train_dialogues=41)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(InputError, match=r"data_dir=.*does not hold the simulated corpus of this run"):
        crs_jax.load(workdir, data_dir=other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_any_stored_setting_is_checked_as_a_typed_one(finished_run, tmp_path):
    rng, whole, loaded, told = random.Random(0), (finished_run / "config.json").read_bytes(), 0, set()
    for _ in range(400):
        (tmp_path / "config.json").write_bytes(whole)
        change_json(tmp_path / "config.json", rng)
        said = ""
        try:
            read_config(tmp_path)
            loaded += 1
        except InputError as error:
            said = str(error)
        assert not said or (said.startswith(str(tmp_path / "config.json")) and "\n" not in said), said[:1000]
        told.add(said[len(str(tmp_path)) : 120])
    assert 20 < loaded < 300
    assert len(told) > 50
