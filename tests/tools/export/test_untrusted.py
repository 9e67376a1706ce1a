"""An exported folder may come from anybody, sums included: whatever is changed in it, it loads or one line says why."""

import json
import os
import pathlib
import random
import resource

import numpy as np
import pytest
from hostile_files import change
from safetensors.numpy import load_file, save_file

import crs_jax
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.storage import sha256
from crs_jax.tools.export import ABOUT
from crs_jax.tools.export.checks import NAMES, SPARSE, read_checked

FAULTS, LOADS = 2000, 60


def resealed(folder: pathlib.Path, name: str) -> None:
    """The file's sum as whoever made the folder would write it."""
    about = json.loads((folder / ABOUT).read_text())
    about["sha256"][name] = sha256(folder / name)
    (folder / ABOUT).write_text(json.dumps(about))


def fault(folder: pathlib.Path, rng: random.Random) -> str:
    """Changes one file of the folder, mostly with sums that fit; its name."""
    name = rng.choice((*NAMES, ABOUT, "crs_jax.safetensors", ABOUT))
    change(folder / name, rng)
    if name != ABOUT and rng.random() < 0.85:
        resealed(folder, name)
    return name


def test_any_change_loads_or_is_one_clear_error(copy):
    """Two thousand bytes and fields: each is met by what reads and checks, and some by the whole of `load`."""
    rng, whole = random.Random(0), {path.name: path.read_bytes() for path in copy.iterdir()}
    told, loaded = set(), 0
    for number in range(FAULTS):
        name, message = fault(copy, rng), ""
        try:
            if number % (FAULTS // LOADS) and sorted(whole) == sorted(os.listdir(copy)):
                read_checked(copy)
            else:
                crs_jax.load(copy)
            loaded += 1
        except InputError as error:
            message = str(error)
            told.add(message.partition(":")[2][:60])
        assert not message or (str(copy) in message and len(message) < 900), (number, name, message[:2000])
        assert "\n" not in message, (number, name, message[:2000])
        for changed in (name, ABOUT):
            (copy / changed).write_bytes(whole[changed])
    assert 40 < loaded < FAULTS / 2
    assert len(told) > 100


def edited(path: pathlib.Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(folder: pathlib.Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        crs_jax.load(folder)


def test_a_sparse_matrix_that_leaves_its_arrays_is_refused(copy):
    """Which scipy would follow into memory that is not there."""
    path = copy / "crs_jax.safetensors"
    arrays = load_file(path)
    data, indices, indptr = (arrays[name] for name in SPARSE)
    for name, value, said in (
        ("indices", np.full_like(indices, 2**31 - 1), "indices leaves 0 to"),
        ("indices", np.full_like(indices, -5), "indices leaves 0 to"),
        ("indptr", np.where(np.arange(len(indptr)) == 3, 2**31 - 1, indptr).astype(indptr.dtype), "does not rise"),
        ("indptr", indptr * 2, "does not rise"),
        ("data", data[:-1], "no sparse matrix"),
        ("data", -data, "no count of dialogues"),
    ):
        save_file({**arrays, f"evidence/together/{name}": value}, path)
        resealed(copy, path.name)
        refused(copy, said)


def test_sizes_that_the_files_do_not_have_allocate_nothing(copy):
    """A width, a number of positions or a padding that would take hundreds of gigabytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    crs_jax.load(copy)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, hard))
    before = (copy / ABOUT).read_bytes()
    try:
        for section, settings in (
            ("model", {"width": 65536}), ("model", {"layers": 1024}), ("model", {"positions": 2**17}),
            ("mesh", {"tensor": 2**20}), ("model", {"width": 65536, "heads": 1024, "layers": 1024}),
        ):  # fmt: skip
            edited(copy / ABOUT, lambda about, s=section, v=settings: about["config"][s].update(v))
            refused(copy, "config.json: n_|model_max_length|config.mesh.tensor")
            (copy / ABOUT).write_bytes(before)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_files_out_of_the_folder_are_not_read(copy, tmp_path):
    before = (copy / ABOUT).read_bytes()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name in ("../secret", str(secret), "sub/../../secret"):
        edited(copy / ABOUT, lambda about, n=name: about["sha256"].update({n: sha256(secret)}))
        refused(copy, "does not name the files of an exported folder")
        (copy / ABOUT).write_bytes(before)
    for name in ("items.jsonl", ABOUT):
        moved = (copy / name).rename(tmp_path / f"outside-{name}")
        (copy / name).symlink_to(moved)
        refused(copy, f"{name}: is a link out of the folder")
        (copy / name).unlink()
        moved.rename(copy / name)
    crs_jax.load(copy)
    snapshot, blobs = (tmp_path / "models--owner--name" / part for part in ("snapshots/0a1b", "blobs"))
    for at, place in enumerate(sorted(path for path in copy.rglob("*") if path.is_file())):  # as the hub's cache has it
        link = snapshot / place.relative_to(copy)
        for folder in (link.parent, blobs):
            folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place.rename(blobs / str(at)))
    crs_jax.load(snapshot)


@pytest.mark.parametrize("name", [ABOUT, "config.json", "items.jsonl", "tokenizer.json"])
def test_nesting_and_size_are_bounded(copy, name):
    (copy / name).write_text('{"a":' + "[" * 200_000)
    if name != ABOUT:
        resealed(copy, name)
    refused(copy, f"{name}.*(cannot be read|not JSON)")
    with open(copy / name, "wb") as file:
        file.truncate(2**40)  # a hole: the disk has none of it
    refused(copy, rf"{name}: has more than [\d,]+ bytes")
