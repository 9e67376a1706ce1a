"""What a cache keeps comes back bit for bit or is made again, whatever happened to it, and a line says so."""

import dataclasses
import os
import pathlib
import random
import shutil
import time

import numpy as np
import pytest
from tiny_task import make_task, tiny_config

from crs_jax.data import arrow, corpus
from crs_jax.inputs.labels import label
from crs_jax.runtime import kept
from crs_jax.runtime.kept import clean, is_whole, keep_arrays, kept_arrays, making

BITS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared corpus, and what it holds."""
    workdir = tmp_path_factory.mktemp("kept")
    found = corpus.load(tiny_config(workdir / "cache"), workdir)
    (folder,) = (workdir / "cache").glob("simulated-*")
    return folder, found


def turned(path: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_a_turned_bit_of_a_prepared_corpus_is_never_read(made, tmp_path, capsys):
    rng, (folder, _) = random.Random(0), made
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) > 10
    for number in range(BITS):
        copy = shutil.copytree(folder, tmp_path / "cache" / folder.name)
        turned(copy / files[number % len(files)], rng)
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert arrow.load(copy) is None
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 1
        assert f"note: {copy} is damaged" in said[0]
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
        shutil.rmtree(copy)


def test_a_damaged_corpus_is_replaced_beside_those_who_read_it(made, tmp_path, capsys):
    config, rng = tiny_config(tmp_path / "cache"), random.Random(0)
    folder = shutil.copytree(made[0], tmp_path / "cache" / made[0].name)
    table = next((folder / "train").glob("*.arrow"))
    turned(table, rng)
    content, expected = table.read_bytes(), dataclasses.replace(made[1], folder=tmp_path / "cache" / "raw")
    with table.open("rb") as read_by_another:
        assert corpus.load(config, tmp_path) == expected
        assert read_by_another.read() == content
    assert capsys.readouterr().out.count("is damaged") == 1
    assert is_whole(folder)
    (aside,) = (tmp_path / "cache").glob(".*")
    assert (aside / table.relative_to(folder)).read_bytes() == content
    assert corpus.load(config, tmp_path) == expected
    assert capsys.readouterr().out == ""
    clean(tmp_path / "cache")
    assert aside.is_dir()  # younger than a day


def test_of_two_writers_the_first_wins(tmp_path):
    place = tmp_path / "here"
    with making(place) as late:
        (late / "a").write_text("late")
        with making(place) as early:
            (early / "a").write_text("early")
    assert (place / "a").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_turned_bit_of_kept_arrays_is_never_read(tmp_path, capsys):
    rng, value = random.Random(0), np.arange(300, dtype=np.float32)
    keep_arrays(tmp_path, "labels", value=value)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for _ in range(BITS):
        turned(path, rng)
        assert list(kept_arrays(tmp_path, "labels")) == []
        assert capsys.readouterr().out == f"note: {path} is damaged; what it held is made again\n"
        path.write_bytes(whole)
    turned(path, rng)
    keep_arrays(tmp_path, "labels", value=value + 1)
    (found,) = kept_arrays(tmp_path, "labels")
    np.testing.assert_array_equal(found["value"], value + 1)
    assert len(list(tmp_path.iterdir())) == 1  # the damaged one gave way


def test_damaged_labels_are_made_again(tmp_path, capsys):
    task = make_task(tmp_path, tiny_config(tmp_path / "cache"))
    first = label(task, "validation")
    (path,) = task.cache.glob("labels-*")
    whole = path.read_bytes()
    turned(path, random.Random(0))
    again = label(task, "validation")
    np.testing.assert_array_equal(again.signal_DTS, first.signal_DTS)
    assert again.available == first.available
    assert "labels" in capsys.readouterr().out
    assert [each.read_bytes() for each in task.cache.glob("labels-*")] == [whole]


def test_what_killed_writers_left_goes_after_a_day(tmp_path):
    store = tmp_path / "embeddings" / "0123456789abcdef"
    left = [f".raw-{'a' * 8}", f".redial-{'0' * 24}-abc_1234", f".labels-{'f' * 16}-abcd1234.tmp"]
    theirs = [".git", ".my-settings", ".cache-2024", f"redial-{'0' * 24}", "notes.tmp"]
    places = [*(tmp_path / name for name in left), store / f".{'0' * 16}-abcdefgh.tmp", store / "tmpabcdefgh.tmp"]
    others = [tmp_path / name for name in theirs]
    for path in (*places, *others):
        if path.suffix == ".tmp":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("part")
        else:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "part").write_text("part")
    clean(tmp_path)
    assert all(path.exists() for path in (*places, *others))
    past = time.time() - 1.5 * kept.DAY
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        os.utime(path, (past, past))
    os.utime(places[0] / "deep" / "part")  # whose writer is at work
    clean(tmp_path)
    assert [path for path in places if path.exists()] == places[:1]
    assert all(path.exists() for path in others)
