"""A run and an exported folder of another version: each reader refuses it in one line, or reads it as its own."""

import json
import pathlib
import re
import shutil
import types

import pytest
import small_run
from safetensors.numpy import load_file, save_file

import crs_jax
from crs_jax import preflight
from crs_jax.runtime import versions
from crs_jax.runtime.checkpoint import _text_digest, done_meta
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.storage import sha256
from crs_jax.runtime.versions import FIRST, VERSION, Renamed
from crs_jax.stored_config import read_config
from crs_jax.tools.chat import program as chat
from crs_jax.tools.chat.collect import corpus_folder
from crs_jax.tools.export import ABOUT
from crs_jax.tools.export.card import model_card
from crs_jax.tools.export.checks import REST
from crs_jax.tools.report.page import write_report
from crs_jax.tools.sweep import finished_runs, program
from crs_jax.training.ppo_stage import logged
from crs_jax.training.transfer import transferred

TALK = [("user", "Hi! Something light and funny, please.")]


@pytest.fixture
def workdir(finished_run, tmp_path) -> pathlib.Path:
    """The small run's, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("exported") / "folder"
    crs_jax.load(finished_run).export(folder)
    return folder


def edit(path: pathlib.Path, change) -> None:
    """Changes the object in a JSON file, or in the first line of one with many."""
    first, *rest = path.read_text().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_text()]
    value = json.loads(first)
    change(value)
    path.write_text("".join([json.dumps(value), "\n" if rest else "", *rest]))


def meta(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Of the latest checkpoint of a stage."""
    return max(workdir.glob(f"checkpoints/{stage}/*/meta/metadata"), key=lambda path: int(path.parts[-3]))


def transfer(workdir: pathlib.Path) -> None:
    config = read_config(workdir)
    config.model.transfer = str(workdir)
    transferred(types.SimpleNamespace(config=config))


def swept(workdir: pathlib.Path) -> None:
    finished_runs.twin(read_config(workdir), [workdir])


def shared(workdir: pathlib.Path) -> None:
    config = read_config(workdir)
    config.ppo.iterations += 1
    finished_runs.share(config, workdir.parent / "new", [workdir])


def both(version: int) -> str:
    """How a file of a version that is not read is refused."""
    return f"written in format {version}, and this release of crs_jax reads {FIRST} to {VERSION}"


READERS = {
    "config.json": {
        "load": crs_jax.load, "chat": lambda workdir: chat.main([f"--workdir={workdir}"]), "report": write_report,
        "card": lambda workdir: model_card(workdir, "ppo"), "transfer": transfer, "collect": corpus_folder,
        "resume": preflight.refuse_other_versions,
    },
    "metrics.json": {
        "report": write_report, "card": lambda workdir: model_card(workdir, "ppo"),
        "sweep": lambda workdir: program.read(workdir, "ranking.sft.fresh.full.hr@10"),
        "resume": preflight.refuse_other_versions,
    },
    "metrics.jsonl": {
        "report": write_report, "ppo": logged, "sweep": lambda workdir: program.read(workdir, "ppo:kl"),
        "sweep's models": lambda workdir: finished_runs.copy(workdir, workdir.parent / "new", ["sft"]),
        "resume": MetricsWriter,
    },
    "checkpoints/sft": {
        "load": crs_jax.load, "transfer": transfer, "resume": preflight.refuse_other_versions,
    },
    "sweep.json": {"done": swept, "models": shared},
}  # fmt: skip


@pytest.mark.parametrize(("name", "reader"), [(name, reader) for name in READERS for reader in READERS[name]])
def test_each_reader_names_the_file_and_both_versions(workdir, name, reader):
    """Of a later release, and of one before the first that is read; what the run holds otherwise is whole."""
    finished_runs.record(workdir, ["--config=x"], read_config(workdir), 1.0)
    (workdir.parent / "new").mkdir()
    path = meta(workdir, "sft") if name == "checkpoints/sft" else workdir / name
    read, before = READERS[name][reader], path.read_bytes()
    where = re.escape(str(path.parents[1] if name == "checkpoints/sft" else path)) + "(:1)?"
    for version in (VERSION + 1, FIRST - 1):
        edit(path, lambda value, v=version: value.update(format=v))
        with pytest.raises(InputError) as met:
            read(workdir)
        assert re.fullmatch(
            f"{where}: {both(version)}; train or export again .*, or use the release .*", str(met.value)
        )
        path.write_bytes(before)


def test_a_run_of_the_first_version_loads_and_goes_on(workdir, finished_run, monkeypatch):
    """No number in its files, another name for it in its checkpoints: nothing is trained again, and files get one."""
    for name in ("config.json", "metrics.json"):
        edit(workdir / name, lambda value: value.pop("format"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[1:]))
    for stage in ("sft", "reward", "ppo"):
        for path in workdir.glob(f"checkpoints/{stage}/*/meta/metadata"):
            edit(path, older)
    own, old = crs_jax.load(finished_run), crs_jax.load(workdir)
    assert old.reply(TALK, seed=1) == own.reply(TALK, seed=1)
    assert old.score(TALK, "Hello") == own.score(TALK, "Hello")
    write_report(workdir)

    before = small_run.logged(finished_run)
    monkeypatch.setenv("WANDB_MODE", "offline")  # as `finished_run` was made
    again = small_run.run(workdir, **small_run.FINISHED, **{"wandb.project": "small"})
    assert again.returncode == 0, again.stdout + again.stderr
    for stage in ("sft", "reward", "ppo", "evaluate"):
        assert f"{stage}: done before" in again.stdout
    assert small_run.logged(workdir) == before
    for name in ("config.json", "metrics.json", "metrics.jsonl"):
        assert (workdir / name).read_text() == (finished_run / name).read_text()
    assert [done_meta(workdir, stage)["format"] for stage in ("sft", "reward", "ppo")] == [FIRST] * 3


def older(value: dict) -> None:
    """A checkpoint's meta as the first version wrote it."""
    del value["format"], value["digest"]["meta"]
    value["layout"] = FIRST
    value["digest"]["meta"] = _text_digest(value)


def test_a_later_run_is_not_gone_on_with_and_stays_as_it_is(workdir):
    edit(workdir / "metrics.json", lambda value: value.update(format=VERSION + 1))
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    refused = small_run.run(workdir, **small_run.FINISHED)
    assert refused.returncode == 2
    last = refused.stderr.strip().splitlines()
    assert len(last) == 1
    assert f"metrics.json: {both(VERSION + 1)}" in last[0]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": VERSION + 1}, both(VERSION + 1)),
        ({"format": FIRST - 1}, both(FIRST - 1)),
        ({"format": "2"}, "format is '2', expected a whole number from 1"),
        ({"format": -2}, "format is -2, expected a whole number from 1"),
        ({"format": None}, "format is None, expected a whole number from 1"),
        ({"more": 1}, "holds format, .*more, which are not the fields"),
    ],
)
def test_an_exported_folder_names_both_versions(exported, tmp_path, change, said):
    copy = shutil.copytree(exported, tmp_path / "copy")
    assert json.loads((copy / ABOUT).read_text())["format"] == VERSION
    edit(copy / ABOUT, lambda about: about.update(change))
    with pytest.raises(InputError, match=f"{re.escape(str(copy / ABOUT))}: {said}"):
        crs_jax.load(copy)


def test_an_exported_folder_and_a_run_of_other_names_are_read_by_a_table(exported, workdir, tmp_path, monkeypatch):
    """A setting and a parameter, as an older version may have called them."""
    copy, names = shutil.copytree(exported, tmp_path / "copy"), ("query/named_match", "query/heard_match")
    arrays = {name.replace(*names): array for name, array in load_file(copy / REST).items()}
    assert sum(names[1] in name for name in arrays) == 1
    clip = read_config(workdir).ppo.clip
    save_file(arrays, copy / REST)

    def settings(config: dict) -> None:
        config["ppo"]["cut"] = config["ppo"].pop("clip")

    def about(value: dict) -> None:
        value["format"], value["sha256"][REST] = FIRST, sha256(copy / REST)
        settings(value["config"])

    edit(copy / ABOUT, about)
    edit(workdir / "config.json", settings)
    for folder in (copy, workdir):
        with pytest.raises(InputError, match=r"ppo\.cut: there is no such setting"):
            crs_jax.load(folder)
    monkeypatch.setitem(versions.RENAMED, FIRST, Renamed({"ppo.cut": "ppo.clip"}, {names[1]: names[0]}))
    assert crs_jax.load(copy).recommend(TALK) == crs_jax.load(exported).recommend(TALK)
    with pytest.raises(InputError, match=r"ppo\.cut: there is no such setting"):
        read_config(workdir)  # says that it is of today
    edit(workdir / "config.json", lambda config: config.pop("format"))
    assert read_config(workdir).ppo.clip == clip
