"""Each file says the version of its layout; an older one is read where a table of names makes it today's."""

import json
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from crs_jax.runtime import versions
from crs_jax.runtime.checkpoint import Checkpoints, Saved, _text_digest, digest, done_meta, load_result
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json, write_json_lines
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import FIRST, VERSION, Renamed, read_log, read_settings, read_versioned, settings_now

RENAMED = Renamed(
    settings={"reward.rate": "reward.learning_rate", "sft.seed": "seed", "signals.mood.how": "signals.sentiment"},
    parameters={"query/near": "query/neighbours", "tower": "items/tower"},
)
REST = f"and this release of crs_jax reads {FIRST} to {VERSION}; train or export again into another folder, or use the "
REFUSED = [
    *((stated, f"written in format {stated}, {REST}release that wrote it") for stated in (FIRST - 1, VERSION + 1)),
    *((stated, f"format is {stated!r}, expected a whole number from 1; the file is damaged")
      for stated in (None, 0, -1, 2.5, 3.0, True, "3", [3], {})),
]  # fmt: skip
"""What a file states, and what is said of it behind the file's name."""


@pytest.fixture
def renamed(monkeypatch):
    """A table for files of the first version."""
    monkeypatch.setitem(versions.RENAMED, FIRST, RENAMED)


@pytest.mark.parametrize(("stated", "said"), REFUSED)
@pytest.mark.parametrize("name", ["metrics.json", "config.json", "metrics.jsonl"])
def test_what_is_not_read_is_one_line_that_names_file_and_both_versions(tmp_path, name, stated, said):
    path, where = tmp_path / name, str(tmp_path / name)
    if name == "metrics.jsonl":
        write_json_lines(path, [{"format": stated}, {"stage": "sft", "step": 1}])
        where += ":1"
        readers = [read_log, lambda path: MetricsWriter(path.parent, tensorboard=False)]
    else:
        write_json(path, {"format": stated, "seed": 1})
        readers = [read_settings if name == "config.json" else read_versioned]
    for read in readers:
        with pytest.raises(InputError) as met:
            read(path)
        assert str(met.value) == f"{where}: {said}"


def test_what_is_read_is_the_content_alone(tmp_path):
    versions.write_versioned(tmp_path / "a.json", {"x": np.float32(0.5)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"format": VERSION, "x": 0.5}
    assert read_versioned(tmp_path / "a.json") == {"x": 0.5}
    versions.write_log(tmp_path / "a.jsonl", [{"stage": "sft"}])
    assert (tmp_path / "a.jsonl").read_text().splitlines() == [f'{{"format": {VERSION}}}', '{"stage": "sft"}']
    assert list(versions.numbered_log(tmp_path / "a.jsonl")) == [(2, {"stage": "sft"})]


@pytest.mark.parametrize(
    ("lines", "number"),
    [([{"format": VERSION, "stage": "sft"}], 1), ([{"stage": "sft"}, {"format": VERSION}], 2),
     ([{"format": VERSION}, {"format": VERSION}], 2)],
)  # fmt: skip
def test_a_log_states_its_version_alone_and_first(tmp_path, lines, number):
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    with pytest.raises(InputError, match=rf"metrics\.jsonl:{number}: format belongs in the first line, and alone"):
        read_log(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("header", ["", f'{{"format": {FIRST}}}\n'])
@pytest.mark.parametrize("torn", ["", '{"stage": "sft", "st'])
def test_a_log_of_before_versions_is_gone_on_with(tmp_path, header, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(header + '{"stage": "sft", "step": 1, "loss": 0.1}\n' + torn)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 2, {"loss": 0.5})
        with pytest.raises(ValueError, match="format"):
            writer.write("sft", 3, {"format": 3})
    assert path.read_text().splitlines()[0] == f'{{"format": {VERSION}}}'
    assert [line["loss"] for line in read_log(path)] == [0.1, 0.5]
    before = path.stat().st_ino
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert path.stat().st_ino == before, "one of today's version is not written anew"


def test_a_log_that_was_cut_off_in_its_version_begins_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"form')
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f'{{"format": {VERSION}}}\n'


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"reward": {"rate": 1}}, {"reward": {"learning_rate": 1}}),
        ({"reward": {"rate": 1, "clip": 2}}, {"reward": {"clip": 2, "learning_rate": 1}}),
        ({"sft": {"seed": 1}}, {"seed": 1}),
        ({"sft": {"seed": 1, "rows": 2}}, {"sft": {"rows": 2}, "seed": 1}),
        ({"signals": {"mood": {"how": "vader"}}}, {"signals": {"sentiment": "vader"}}),
        ({"signals": {"mood": 1}, "reward": 3, "sft": []}, {"signals": {"mood": 1}, "reward": 3, "sft": []}),
        ({"signals": 1}, {"signals": 1}),
        ({"reward.rate": 1, "sft.seed": 2, "ppo.clip": 3}, {"reward.learning_rate": 1, "seed": 2, "ppo.clip": 3}),
        (5, 5),
        ([], []),
    ],
)
def test_settings_have_todays_names(tmp_path, old, new):
    assert settings_now(json.loads(json.dumps(new)), VERSION) == new
    assert settings_now(json.loads(json.dumps(old)), FIRST) == new
    if isinstance(old, dict):
        write_json(tmp_path / "config.json", old)
        assert read_settings(tmp_path / "config.json") == new
        write_json(tmp_path / "config.json", {"format": VERSION, **old})
        assert read_settings(tmp_path / "config.json") == old


def test_a_setting_that_moves_into_what_is_no_section_is_left_to_who_reads_it(monkeypatch):
    monkeypatch.setitem(versions.RENAMED, FIRST, Renamed(settings={"seed": "data.seed", "sft.seed": "data.seed"}))
    assert settings_now({"sft": {"seed": 1}, "data": 5}, FIRST) == {"data": 5}


class Moments(NamedTuple):
    count: int
    mu: dict


OLD = {"query": {"near": 1, "text": 2}, "tower": {"kernel": 3, "near": 4}, "nearer": 5, "none": {}}
NEW = {"query": {"neighbours": 1, "text": 2}, "items": {"tower": {"kernel": 3, "near": 4}}, "nearer": 5, "none": {}}


@pytest.mark.usefixtures("renamed")
def test_parameters_have_todays_names_wherever_they_stand():
    for old, new in ((OLD, NEW), ((Moments(1, OLD), [None, 2]), (Moments(1, NEW), [None, 2])),
                     ({"policy": OLD, "adam": {"trunk": Moments(0, OLD)}},
                      {"policy": NEW, "adam": {"trunk": Moments(0, NEW)}})):  # fmt: skip
        assert versions.parameters_now(old, FIRST) == new
        assert versions.parameters_then(new) == old
        assert versions.parameters_now(new, VERSION) is new
    assert versions.path_now("policy/query/near", FIRST) == "policy/query/neighbours"
    assert versions.path_now("policy/query/near", VERSION) == "policy/query/near"


def old_checkpoint(workdir: pathlib.Path, **config: str) -> pathlib.Path:
    """The meta of the one checkpoint in a workdir, made that of the first version, settings by other names."""
    path = next((workdir / "checkpoints").rglob("meta/metadata"))
    meta = json.loads(path.read_text())
    del meta["format"], meta["digest"]["meta"]
    meta |= {"layout": FIRST, "config": {config.get(name, name): value for name, value in meta["config"].items()}}
    meta["digest"]["meta"] = _text_digest(meta)
    path.write_text(json.dumps(meta))
    return path


def test_a_checkpoint_of_the_first_version_is_gone_on_with(tmp_path, monkeypatch):
    """Of other names in its config, its parameters and its optimizer: bits and fingerprints are what they were."""

    def params(seed: float) -> dict:
        return {"query": {"near": jnp.full(3, seed), "text": jnp.full(2, 2 * seed)}, "tower": jnp.full(4, 3 * seed)}

    state = {"params": params(0.1), "opt": (Moments(jnp.int32(4), params(0.2)), params(0.3))}
    with Checkpoints(tmp_path, "reward", get_config(), {"SFT model": digest(params(0.7))}) as checkpoints:
        checkpoints.save(Saved(step=3, done=True, state=state, result=params(0.4)))
    old_checkpoint(tmp_path, **{"reward.learning_rate": "reward.rate"})
    with pytest.raises(InputError, match=r"made with config\.reward\.rate=0\.0003, now None"):
        Checkpoints(tmp_path, "reward", get_config())

    monkeypatch.setitem(versions.RENAMED, FIRST, RENAMED)

    def now(seed: float) -> dict:
        return {"query": {"neighbours": jnp.full(3, seed), "text": jnp.full(2, 2 * seed)},
                "items": {"tower": jnp.full(4, 3 * seed)}}  # fmt: skip

    assert done_meta(tmp_path, "reward")["config"]["reward.learning_rate"] == get_config().reward.learning_rate
    found = load_result(tmp_path, "reward")
    assert {name: [*tree] for name, tree in found.items()} == {"query": ["neighbours", "text"], "items": ["tower"]}
    assert digest(found) == digest(now(0.4))
    with Checkpoints(tmp_path, "reward", get_config(), {"SFT model": digest(now(0.7))}) as checkpoints:
        assert checkpoints.latest() == Saved(step=3, done=True)
        like = {"params": now(0.0), "opt": (Moments(jnp.int32(0), now(0.0)), now(0.0))}
        back = checkpoints.restore(3, "state", like)
        np.testing.assert_array_equal(back["params"]["query"]["neighbours"], jnp.full(3, 0.1))
        np.testing.assert_array_equal(back["opt"][0].mu["items"]["tower"], jnp.full(4, 0.2 * 3))
        assert digest(back) == digest(state)
        checkpoints.save(Saved(step=4, done=True, state=back, result=found))
    assert done_meta(tmp_path, "reward")["format"] == VERSION
    with Checkpoints(tmp_path, "reward", get_config(), {"SFT model": digest(now(0.7))}) as checkpoints:
        assert digest(checkpoints.restore(4, "result", now(0.0))) == digest(params(0.4))


@pytest.mark.parametrize(("stated", "said"), REFUSED)
def test_a_checkpoint_that_is_not_read_is_one_line(tmp_path, stated, said):
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        checkpoints.save(Saved(step=3, done=True, state={"w": jnp.ones(2)}, result={"w": jnp.ones(2)}))
    path = next((tmp_path / "checkpoints").rglob("meta/metadata"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": stated}))
    for read in (lambda: Checkpoints(tmp_path, "reward", get_config()), lambda: done_meta(tmp_path, "reward"),
                 lambda: load_result(tmp_path, "reward")):  # fmt: skip
        with pytest.raises(InputError) as met:
            read()
        assert str(met.value) == f"{tmp_path / 'checkpoints' / 'reward' / '3'}: {said}"


def test_a_checkpoint_of_today_without_digests_is_damaged(tmp_path):
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        checkpoints.save(Saved(step=3, done=True, state={"w": jnp.ones(2)}, result={"w": jnp.ones(2)}))
    path = next((tmp_path / "checkpoints").rglob("meta/metadata"))
    meta = json.loads(path.read_text())
    del meta["digest"]
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="reward/3: damaged, it cannot be read as it was written"):
        done_meta(tmp_path, "reward")
