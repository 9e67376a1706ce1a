"""Weights & Biases, offline: what its files hold of a run, over resumes, and what is said where it cannot be used."""

from __future__ import annotations

import json
import pathlib
import struct
import sys
import time

import numpy as np
import pytest
from waits import HANGS

from configs import common
from crs_jax.runtime import weights_and_biases
from crs_jax.runtime.checkpoint import SECTIONS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter, read_json, read_json_lines
from crs_jax.runtime.weights_and_biases import WandbRun, refuse_where_missing
from crs_jax.tools.sweep.finished_runs import settings


def asked(**changes):
    config = common.get_config()
    config.wandb.project = "films"
    config.update_from_flattened_dict(changes)
    return config


def records(path: pathlib.Path) -> list:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, a header of crc, length and kind.

    W&B's own process writes it; what ends a run is its last record.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    until = time.monotonic() + HANGS
    while time.monotonic() < until:
        data, at, whole, found = path.read_bytes(), 7, b"", []
        assert data[:4] in (b":W&B", b"")
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(whole))
                whole = b""
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.02)
    pytest.fail(f"{path} has no end")


def values(items) -> dict[str, object]:
    """Of a row or a summary; what stands within a value has a name with dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def sent(workdir: pathlib.Path) -> dict[str, list[dict]]:
    """By the run's id: the rows of all its files, in order."""
    found: dict[str, list[dict]] = {}
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.parent.name):
        rows = found.setdefault(path.stem.removeprefix("run-"), [])
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                rows.append(values(record.history.item) | {"_step": record.history.step.num})
    return found


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def write(workdir, config, steps, drop=None, stage="ppo"):
    while list(workdir.glob(f"wandb/offline-run-*{time.strftime('%H%M%S')}-*")):  # W&B names folders by the second
        time.sleep(0.05)
    with MetricsWriter(workdir, tensorboard=False, wandb=WandbRun(workdir, config)) as writer:
        if drop is not None:
            writer.drop_after(stage, drop)
        for step in steps:
            writer.write(stage, step, {"reward": step / 4, "bad": float("nan")})
            if step % 2 == 0:
                writer.histogram(stage, step, "replies/reward", np.arange(10.0))
                writer.table("samples", ["context", "reward"], [["a <b>", 0.5], ["c", None]])
                writer.write(stage, step, {"validation/reward": step / 8})


def test_a_resumed_run_goes_on_and_sends_nothing_twice(tmp_path):
    """Killed after step 5 with a checkpoint at 3; then again, before that is reached."""
    write(tmp_path, asked(), range(3), stage="sft")
    write(tmp_path, asked(), range(6))
    write(tmp_path, asked(), range(4, 5), drop=3)
    write(tmp_path, asked(), range(4, 8), drop=3)
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    ((_, rows),) = sent(tmp_path).items()
    assert [row["_step"] for row in rows] == list(range(len(lines)))
    for line, row in zip(lines, rows, strict=True):
        stage = line["stage"]
        logged = {f"{stage}/{name}": value for name, value in line.items() if name != "stage" and value is not None}
        assert logged.items() <= row.items()
        assert f"{stage}/bad" not in row
        looked = "validation/reward" in line
        assert (row.get(f"{stage}/samples._type") == "table-file") is looked
        assert (row.get(f"{stage}/replies/reward._type") == "histogram") is looked
    assert sum(map(len, (json.loads(p.read_text())["data"] for p in tmp_path.rglob("samples_*.table.json")))) == 2 * 6


def test_other_settings_are_another_run_that_begins_with_what_is_kept(tmp_path):
    write(tmp_path, asked(), range(2), stage="sft")
    first = read_json(tmp_path / "wandb" / "crs_jax.json")["id"]
    write(tmp_path, asked(**{"evaluation.bootstrap": 9}), range(2, 3), stage="sft")  # decides no model
    write(tmp_path, asked(**{"ppo.clip": 0.1}), range(2))
    runs = sent(tmp_path)
    assert list(runs) == [first, read_json(tmp_path / "wandb" / "crs_jax.json")["id"]]
    assert [row["sft/step"] for row in runs.pop(first)] == [0, 0, 1, 2, 2]
    ((_, rows),) = runs.items()
    assert [(row.get("sft/step"), row.get("ppo/step")) for row in rows] == [
        *((step, None) for step in (0, 0, 1, 2, 2)),
        *((None, step) for step in (0, 0, 1)),
    ]


def test_the_summary_holds_the_figures_of_the_run(tmp_path):
    found = {"ranking": {"sft": {"fresh": {"full": {"hr@10": {"value": 0.25, "low": 0.1, "high": 0.4}}}}},
             "text": {"sft": {"bleu-4": 0.5, "bleu-signature": "words"}}, "data": {"items": 3}}  # fmt: skip
    with MetricsWriter(tmp_path, tensorboard=False, wandb=WandbRun(tmp_path, asked())) as writer:
        writer.summary(found)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    updates = [r.summary.update for r in records(path) if r.WhichOneof("record_type") == "summary"]
    summary = {name: v for update in updates for name, v in values(update).items() if not name.startswith("_")}
    assert summary == {"ranking/sft/fresh/full/hr@10": 0.25, "text/sft/bleu-4": 0.5}


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--config\.wandb\.project=films: .* the extra 'wandb'"):
        refuse_where_missing(asked())
    refuse_where_missing(common.get_config())


def test_nobody_logged_in_is_one_line_that_says_what_to_do(monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refused():
        raise wandb.errors.UsageError("No API key\nconfigured.")

    refuse_where_missing(asked())  # offline needs no account
    monkeypatch.setattr(wandb, "login", refused)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    says = r"No API key configured; log in with `wandb login`, or set WANDB_MODE=offline"
    with pytest.raises(InputError, match=says) as error:
        refuse_where_missing(asked())
    assert "\n" not in str(error.value)


def test_other_processes_open_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_and_biases.WandbRun, "open", lambda self: pytest.fail("opened"))
    write_nothing = MetricsWriter(tmp_path / "run", enabled=False, wandb=WandbRun(tmp_path / "run", asked()))
    write_nothing.write("ppo", 1, {"reward": 1.0})
    write_nothing.table("samples", ["a"], [["b"]])
    write_nothing.summary({})
    write_nothing.close()
    assert not (tmp_path / "run").exists()


def test_where_a_run_is_told_decides_no_model_and_no_finished_run():
    assert "wandb" not in {name for names in SECTIONS.values() for name in names}
    assert settings(asked()) == settings(common.get_config())
