"""metrics.jsonl is strict JSON, survives a cut-off run, and a resumed stage does not log twice."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import pathlib
import sys
import types
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import (
    numbered_json_lines,
    read_json,
    read_json_lines,
    to_json,
    write_json,
    write_json_lines,
)
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.tensorboard import markdown_table
from crs_jax.runtime.versions import VERSION


def strict(text: str):
    """A parser that refuses NaN and Infinity, as every other language's does."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines_of(folder: pathlib.Path) -> list[dict]:
    first, *lines = (strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert first == {"format": VERSION}
    return lines


def test_lines_hold_floats_and_null_for_what_is_not_finite(tmp_path):
    import jax.numpy as jnp

    values = {"python": 1, "numpy": np.float32(0.5), "array": np.asarray([2.0]), "jax": jnp.asarray(0.25),
              "bf16": jnp.asarray(1.5, jnp.bfloat16), "flag": np.bool_(True), "nan": float("nan"),
              "inf": -np.inf}  # fmt: skip
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", np.int64(7), values)  # type: ignore[arg-type]
    (line,) = lines_of(tmp_path)
    expected = {
        "python": 1.0,
        "numpy": 0.5,
        "array": 2.0,
        "jax": 0.25,
        "bf16": 1.5,
        "flag": 1.0,
        "nan": None,
        "inf": None,
    }
    assert line == {"stage": "sft", "step": 7, **expected}


def test_lines_are_flushed_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(3):
        writer.write("ppo", step, {"reward": step / 2})
        assert len(lines_of(tmp_path)) == step + 1
    writer.close()
    writer.close()


@pytest.mark.parametrize("value", ["0.5", None, [1.0, 2.0], {"value": 1.0}])
def test_what_is_not_a_number_is_refused(tmp_path, value):
    with MetricsWriter(tmp_path, tensorboard=False) as writer, pytest.raises(TypeError, match="'loss'"):
        writer.write("sft", 0, {"loss": value})
    assert lines_of(tmp_path) == []


def test_reserved_names_and_fractional_steps_are_refused(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match="step"):
            writer.write("sft", 0, {"step": 1.0})
        with pytest.raises(TypeError):
            writer.write("sft", 0.5, {"loss": 1.0})  # type: ignore[arg-type]


def test_drop_after_forgets_later_steps_of_that_stage_alone(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(5):
            writer.write("sft", step, {"loss": step})
        writer.write("ppo", 4, {"reward": 1})
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.drop_after("sft", 2)
        for step in range(3, 6):
            writer.write("sft", step, {"loss": 10 + step})
    found = [(line["stage"], line["step"], line.get("loss")) for line in lines_of(tmp_path)]
    assert found == [("sft", 0, 0), ("sft", 1, 1), ("sft", 2, 2), ("ppo", 4, None), ("sft", 3, 13), ("sft", 4, 14),
                     ("sft", 5, 15)]  # fmt: skip
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.drop_after("sft", -1)
    assert [line["stage"] for line in lines_of(tmp_path)] == ["ppo"]


def test_a_torn_last_line_is_dropped_on_the_next_start(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 0, {"loss": 1})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 1, {"loss": 2})
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1]


def test_other_processes_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "run", enabled=False)
    writer.write("sft", 0, {"loss": 1.0})
    writer.text("sft", 0, "t", "x")
    writer.histogram("sft", 0, "h", [1.0])
    writer.drop_after("sft", 0)
    writer.close()
    write_json(tmp_path / "run" / "metrics.json", {}, enabled=False)
    assert not (tmp_path / "run").exists()


def board(folder: pathlib.Path):
    """What TensorBoard itself reads in a folder; without TensorFlow, as where that is not installed."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def shown(folder: pathlib.Path, name: str) -> list[tuple[int, Any]]:
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto).tolist()) for event in board(folder).Tensors(name)]


def test_tensorboard_has_the_scalars_of_each_stage_and_hides_what_a_resume_drops(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(4):
            writer.write("sft", step, {"loss": step + 0.5, "bad": math.nan, "validation/hr@10": 0.25})
            writer.text("sft", step, "sample", f"words {step}")
            writer.histogram("sft", step, "ranks", np.asarray([1.0, 2.0, np.inf, 4.0]))
        writer.write("ppo", 9, {"reward": 0.25})
        # no queue and no timer: a reader has it before the writer is closed
        assert [step for step, _ in shown(tmp_path / "tensorboard" / "sft", "loss")] == [0, 1, 2, 3]
    with MetricsWriter(tmp_path) as writer:
        writer.drop_after("sft", 1)
        writer.write("sft", 2, {"loss": 7.0})
        writer.histogram("sft", 2, "ranks", [3.0])
    folder = tmp_path / "tensorboard" / "sft"
    assert shown(tmp_path / "tensorboard" / "ppo", "reward") == [(9, 0.25)]
    assert shown(folder, "loss") == [(0, 0.5), (1, 1.5), (2, 7.0)]
    assert shown(folder, "validation/hr@10") == [(0, 0.25), (1, 0.25)]
    assert "bad" not in board(folder).Tags()["tensors"]
    assert shown(folder, "sample/text_summary") == [(0, [b"words 0"]), (1, [b"words 1"])]
    counts = [(step, sum(count for *_, count in buckets)) for step, buckets in shown(folder, "ranks")]
    assert counts == [(0, 3), (1, 3), (2, 1)]
    with MetricsWriter(tmp_path) as writer:  # goes on where nothing is to be dropped
        writer.drop_after("sft", 2)
        writer.write("sft", 3, {"loss": 8.0})
    assert shown(folder, "loss") == [(0, 0.5), (1, 1.5), (2, 7.0), (3, 8.0)]


@pytest.mark.parametrize(
    "text",
    ["a *b* _c_ `d` [e](http://f) <b>g</b> &amp; ![h](i)", "1 | 2 || \\| 3", "\\* \\\\", "# x", "a\nb",
     "<script>alert(1)</script>"],
)  # fmt: skip
def test_markdown_shows_a_text_as_it_is(text):
    """By the parser that TensorBoard shows texts with."""
    from tensorboard.plugin_util import markdown_to_safe_html

    class Cells(html.parser.HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            assert tag in ("table", "thead", "tbody", "tr", "th", "td", "br")
            if tag in ("td", "th"):
                self.found.append("")
            if tag == "br":
                self.found[-1] += "\n"

        def handle_data(self, data):
            if data.strip("\n"):
                self.found[-1] += data

    cells = Cells()
    cells.found = []
    cells.feed(markdown_to_safe_html(markdown_table(["", text], [["x", 0.5], [text, None], ["y", math.nan]])))
    assert cells.found == ["", text, "x", "+0.500", text, "–", "y", "–"]


def test_json_takes_configs_arrays_and_dataclasses():
    @dataclasses.dataclass
    class Point:
        x: float
        names: tuple[str, ...]

    value = {"config": ConfigDict({"a": {"b": (1, 2)}}), "array": np.asarray([1.5, np.nan], np.float32),
             3: Point(np.inf, ("a",)), "path": pathlib.Path("a/b"), "none": None,
             "integer": np.int32(4), "flag": np.bool_(False)}  # fmt: skip
    assert strict(to_json(value)) == {"config": {"a": {"b": [1, 2]}}, "array": [1.5, None],
                                      "3": {"x": None, "names": ["a"]}, "path": "a/b", "none": None, "integer": 4,
                                      "flag": False}  # fmt: skip
    with pytest.raises(TypeError, match="function"):
        to_json({"f": to_json})


def test_the_config_is_written_whole(tmp_path):
    write_json(tmp_path / "config.json", common.get_config())
    assert read_json(tmp_path / "config.json") == json.loads(json.dumps(common.get_config().to_dict()))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_json_lines_keep_line_separators_inside_texts(tmp_path):
    texts = ["a\u2028b", "c\nd", "e\x85f", "\ufffc"]
    write_json_lines(tmp_path / "samples.jsonl", ({"text": text} for text in texts))
    assert [record["text"] for record in read_json_lines(tmp_path / "samples.jsonl")] == texts
    assert [number for number, _ in numbered_json_lines(tmp_path / "samples.jsonl")] == [1, 2, 3, 4]
    assert read_json_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(("content", "where"), [('{"a": 1,\n "b": }', ":2: not JSON"), ("[1]", ":1: holds a list")])
def test_unreadable_json_names_file_and_line(tmp_path, content, where):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_json(path)
    assert f"{path}{where}" in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_json_lines_name_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "step": 0}\n\n{"stage": \n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:3: not JSON"):
        read_json_lines(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "metrics.json")
