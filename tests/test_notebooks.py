"""The notebooks of colab/: every cell runs, in the small form that the environment asks for, and what it makes is used.

Settings are those of the small run that other tests have made, so that its programs are compiled already.
"""

import json
import os
import pathlib
import re
import shutil

import nbformat
import pytest
import small_run
from nbclient import NotebookClient
from waits import HANGS

import crs_jax
from crs_jax.data import redial
from crs_jax.runtime.identity import flatten
from crs_jax.runtime.json_files import read_json
from crs_jax.runtime.versions import read_settings
from crs_jax.tools.export import shared_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
TALK = [("user", "Hi! Something light and funny, please.")]


def execute(name: str, folder: pathlib.Path, monkeypatch, **variables: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`; an error in a cell is one of the test."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    (folder / "jupyter").mkdir(parents=True)
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=HANGS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    variables = {f"CRS_JAX_NOTEBOOK_{key}": value for key, value in variables.items()}
    return client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), **variables})


def output(notebook: nbformat.NotebookNode, cell_source: str) -> str:
    """What the one cell with that in its source printed and showed."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and cell_source in cell.source)
    texts = []
    for out in cell.outputs:
        texts += [out.text] if out.output_type == "stream" else [*out.get("data", {}).values()]
    return "\n".join(texts)


def check(notebook: nbformat.NotebookNode, workdir: pathlib.Path, models: tuple[str, ...]) -> None:
    """What both have in common: all cells ran, and table, page, talk and exported folder are the run's."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    run = crs_jax.load(workdir)
    assert run.models == models
    metrics = read_json(workdir / "metrics.json")
    hr = metrics["ranking"]["ppo"]["fresh"]["full"]["hr@10"]["value"]
    row = next(line for line in output(notebook, "measured(").splitlines() if line.startswith("| PPO |"))
    assert float(re.split(r"\s*\|\s*", row)[4].split(" ")[0]) == pytest.approx(hr, abs=5e-4)
    assert "&lt;!doctype html&gt;" in output(notebook, "report.html")
    said = output(notebook, "def say")
    reply = run.reply(TALK, temperature=0.7, seed=1)
    assert f"you: {TALK[0][1]}\nrecommender: {reply.text}\n" in said
    assert all(item.name in said for item in reply.top)
    assert len(re.findall(r"predicted reward [+-]\d\.\d\d: engagement [+-]", said)) == 2
    assert output(notebook, "# your words").count("recommender: ") == 1
    assert output(notebook, "tensorboard").strip().startswith("tensorboard --logdir")
    assert list((workdir / "tensorboard").rglob("events*"))
    assert shared_model(workdir / "shared") == "ppo"
    assert crs_jax.load(workdir / "shared").recommend(TALK) == run.recommend(TALK)
    assert "library_name: crs_jax" in output(notebook, "run.export")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_whole_without_outputs_and_linked(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}
    link = f"https://colab.research.google.com/github/ORGANISATION/crs_jax/blob/main/colab/{path.name}"
    assert f"({link})" in notebook.cells[0].source
    assert f"({link})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [cell.id for cell in code if re.search(r"^\s*[%!]", cell.source, re.MULTILINE)]  # plain Python


def test_quickstart(finished_run, tmp_path, monkeypatch):
    """Trained in the notebook, it is the run that the command made."""
    small = json.dumps({**small_run.SMALL, **small_run.FINISHED})
    notebook = execute("quickstart", tmp_path, monkeypatch, SMALL=small, WORKDIR="run")
    check(notebook, tmp_path / "run", ("ppo", "sft"))
    assert small_run.outcome(tmp_path / "run")["models"] == small_run.outcome(finished_run)["models"]
    command = read_json(tmp_path / "run" / "metrics.json")["run"]["command"]
    assert command.startswith(f"python -m crs_jax.main --config={ROOT / 'configs' / 'quickstart.py'} --workdir=run ")
    assert "--config.ppo.iterations=6" in command


def test_redial_on_ten_dialogues(finished_run, tmp_path, monkeypatch):
    """Ten dialogues in ReDial's format, those of the small run's corpus; on a CPU, in float32."""
    data = tmp_path / "data"
    data.mkdir()
    for path in redial.files(finished_run / "data", None):
        shutil.copyfile(path, data / path.name)
    lines = (finished_run / "data" / redial.TRAIN).read_text().splitlines()
    (data / redial.TRAIN).write_text("\n".join(lines[:10]) + "\n")
    test = (finished_run / "data" / redial.TEST).read_text().splitlines()
    (data / redial.TEST).write_text("\n".join(test[:4]) + "\n")
    made = flatten(read_settings(finished_run / "config.json"))
    kept = ("data.dir", "data.dataset", "data.hub", "simulator.", "evaluation.ks", "mesh.", "model.leave_out", "wandb.")
    small = {name: value for name, value in made.items() if not name.startswith(kept)}
    small |= {"data.validation_dialogues": 3}
    variables = {"SMALL": json.dumps(small), "VARIANT": "tiny", "DATA": str(data), "WORKDIR": "run"}
    notebook = execute("redial_tpu", tmp_path, monkeypatch, **variables)
    check(notebook, tmp_path / "run", ("ppo", "sft"))
    assert "1 x cpu: data 1, fsdp 1, activations float32" in output(notebook, "chips = ")
    data = read_json(tmp_path / "run" / "metrics.json")["data"]
    assert data["dataset"] == "redial"
    assert data["train_dialogues"] + data["validation_dialogues"] <= 10
