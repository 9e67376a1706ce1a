"""The model card: front matter that the hub's own reader takes, and the figures of metrics.json."""

import json
import pathlib

import pytest
import yaml
from huggingface_hub import ModelCard

from configs import common
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import flatten
from crs_jax.runtime.versions import read_settings
from crs_jax.tools.export.card import model_card
from crs_jax.tools.report.figures import number


def workdir_of(tmp_path, metrics=None, **settings):
    config = common.get_config()
    config.update_from_flattened_dict(settings)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics or {}))
    return tmp_path


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("model", ["ppo", "sft"])
def test_figures_are_those_of_the_run(finished_run, model):
    text = model_card(finished_run, model)
    card = ModelCard(text)
    assert (card.data.license, card.data.language, card.data.library_name) == ("apache-2.0", "en", "crs_jax")
    metrics = json.loads((finished_run / "metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    ranking = metrics["ranking"][model]["fresh"]["full"]
    assert {name: ranking[name]["value"] for name in ("hr@1", "hr@5", "hr@10", "ndcg@5")}.items() <= found.items()
    assert found["utility"] == metrics["simulator"][f"utility_{model}"]
    hr = ranking["hr@5"]
    assert f"{number(hr['value'])} ({number(hr['low'])} to {number(hr['high'])})" in card.text
    rows = [line for line in card.text.splitlines() if line.startswith(f"| {model.upper()} |")]
    assert [row.count("|") for row in rows] == [7, 7, 3, 6]  # both protocols, utility, replies
    assert f"`{metrics['run']['commit']}`" in card.text
    assert "--config=configs/quickstart.py" in card.text
    assert (
        f"--workdir={pathlib.PurePath(metrics['run']['command'].split('--workdir=')[1].split()[0]).name} " in card.text
    )
    for name, value in flatten(read_settings(finished_run / "config.json")).items():
        if not name.startswith("model.leave_out"):
            assert f"{name} = {json.dumps(value)}\n" in card.text


def test_licence_is_that_of_the_corpus_unless_stated(tmp_path):
    published = {"data": {"items": 6924}}
    at = workdir_of(tmp_path, published, **{"data.dataset": "redial", "data.dir": "/home/me/redial"})
    text = model_card(at, "sft")
    assert front(text)["license"] == "cc-by-4.0"
    assert "/home/me" not in text
    at = workdir_of(tmp_path, {"data": {"items": 12}}, **{"data.dataset": "redial", "data.dir": "mine"})
    assert front(model_card(at, "sft"))["license"] == "other"
    assert front(model_card(at, "sft"))["license_name"] == "not-stated"
    stated = front(model_card(at, "sft", "mit"))
    assert (stated["license"], "license_name" in stated) == ("mit", False)
    at = workdir_of(tmp_path, **{"data.dataset": "opendialkg"})
    assert front(model_card(at, "sft"))["license"] == "cc-by-nc-4.0"


def test_base_model_and_dataset_of_the_hub_are_named(tmp_path):
    hub = {"data.dataset": "redial", "data.hub": "community-datasets/re_dial"}
    text = model_card(workdir_of(tmp_path, **hub, **{"model.init": "gpt2-medium"}), "ppo")
    assert "- Started from: gpt2-medium\n" in text
    found = front(text)
    assert found["base_model"] == "openai-community/gpt2-medium"
    assert found["datasets"] == ["community-datasets/re_dial"]
    found = front(model_card(workdir_of(tmp_path, **{"model.init": "owner/name@abc"}), "ppo"))
    assert found["base_model"] == "owner/name"
    for init in ("scratch", "/home/me/gpt2"):
        assert "base_model" not in front(model_card(workdir_of(tmp_path, **{"model.init": init}), "ppo"))


def test_a_run_that_measured_nothing_says_so(tmp_path):
    text = model_card(workdir_of(tmp_path), "sft")
    assert "This run measured nothing." in text
    assert "model-index" not in front(text)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics.json: no such file"):
        model_card(tmp_path, "sft")
