"""A made-up run's workdir, with every file and figure a report can show."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from configs import common
from crs_jax.runtime.json_files import write_json_lines
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_versioned, write_versioned

HOSTILE = "<script>alert('x')</script> & \"quotes\" <img src=https://example.com/x.png onerror=alert(1)>"
KS = (1, 5, 10, 50)
STRENGTH = {
    "sft": 1.0,
    "ppo": 1.12,
    "popularity": 0.5,
    "copy": 0.2,
    "similarity": 0.4,
    "cooccurrence": 0.8,
    "mix": 0.95,
}
TITLES = ("The Silent Harbour (1998)", "Blue Meridian (2011)", "Nine Lanterns (2004)", "A Field of Iron (1987)",
          "Paper Moons (2016)", "The Long Quiet (1973)", "Redwood (2009)", "Night Ferry (1994)")  # fmt: skip


def _rank_cell(rng: np.random.Generator, strength: float, target: str, protocol: str) -> dict[str, Any]:
    cell = {}
    scale = strength * (1.15 if target == "all" else 1.0) * (2.2 if protocol == "sampled" else 1.0)
    for k in KS:
        hr = min(0.97, 0.026 * scale * k**0.62 * rng.uniform(0.97, 1.03))
        for name, value in (("hr", hr), ("ndcg", hr * (0.5 + 0.5 / k)), ("mrr", hr * (0.4 + 0.6 / k))):
            half = 1.96 * math.sqrt(value * (1 - value) / 1800)
            cell[f"{name}@{k}"] = {"value": value, "low": max(value - half, 0), "high": value + half}
    return cell


def full_metrics(rng: np.random.Generator) -> dict[str, Any]:
    """metrics.json of a run of all stages."""
    ranking = {
        row: {t: {p: _rank_cell(rng, s, t, p) for p in ("full", "sampled")} for t in ("all", "fresh")}
        for row, s in STRENGTH.items()
    }
    paired: dict[str, Any] = {}
    for t in ("all", "fresh"):
        for p in ("full", "sampled"):
            for name, sft in ranking["sft"][t][p].items():
                gain = ranking["ppo"][t][p][name]["value"] - sft["value"]
                spread = rng.uniform(0.3, 1.6) * abs(gain) + 1e-4
                entry = {"value": gain, "low": gain - spread, "high": gain + spread, "p": rng.uniform(0, 0.1)}
                paired.setdefault(t, {}).setdefault(p, {})[name] = entry
    lengths: dict[str, Any] = {"window": 8}
    for t in ("all", "fresh"):
        for n, bucket in enumerate(("1-3", "11+", "beyond-window"), 1):
            cells = {row: _rank_cell(rng, STRENGTH[row] / n, t, "full") for row in ("sft", "ppo")}
            gap = {"value": -0.0123 * n, "low": -0.0456, "high": 0.0078, "p": 0.3}
            cells["ppo-sft"] = {"hr@10": gap, "ndcg@10": gap}
            lengths.setdefault(t, {})[bucket] = {**cells, "n": 1200 + n}
    paired["text"] = {"bleu-4": {"value": -0.0021, "low": -0.0052, "high": 0.0011, "p": 0.21},
                      "recommends": {"value": 0.506, "low": 0.451, "high": 0.559}}  # fmt: skip
    return {
        "ranking": ranking,
        "paired": {"ppo-sft": paired},
        "by_length": lengths,
        "published": {
            "KBRD": {"fresh": {"full": {"hr@1": 0.017, "hr@10": 0.148, "hr@50": 0.3}}, "source": "Kostric & Balog"},
            "UniCRS": {
                "fresh": {"full": {"hr@1": 0.024, "hr@10": 0.18, "hr@50": 0.335}},
                "source": "Kostric & Balog",
                "sr": 0.048,
                "rdl": 0.03,
            },
        },
        "success": {"sft": {"sr": 0.0412, "rdl": 0.0271}, "ppo": {"sr": 0.0467, "rdl": 0.0313}},
        "text": {
            "sft": {"bleu-4": 0.0312, "bleu-signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
                    "distinct-1": 0.041, "distinct-2": 0.172, "rouge-l": 0.1513, "perplexity": 14.27,
                    "bits-per-byte": 0.913, "bytes-reference": 41_207, "length": 11.83, "repetition": 0.034,
                    "recommends": 0.407, "recommends-reference": 0.463},
            "ppo": {"bleu-4": 0.0291, "bleu-signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
                    "distinct-1": 0.038, "distinct-2": 0.163, "rouge-l": 0.1498, "perplexity": 15.92,
                    "bits-per-byte": 0.957, "bytes-reference": 41_207, "length": 13.21, "repetition": 0.041,
                    "recommends": 0.913, "recommends-reference": 0.463},
            "human": {"distinct-1": 0.093, "distinct-2": 0.431, "length": 12.67},
        },
        "rewards": {
            "sft": {"reward": {"value": 0.034, "low": 0.001, "high": 0.067}, "engagement": 0.012, "relevance": 0.381,
                    "sentiment": 0.0062, "entropy-act": 4.812, "entropy-word": 2.317},
            "ppo": {"reward": {"value": 0.265, "low": 0.229, "high": 0.3}, "engagement": 0.141, "relevance": 0.427,
                    "sentiment": 0.0173, "kl": 2.913, "kl-act": 1.204, "kl-word": 1.709, "entropy-act": 4.107,
                    "entropy-word": 2.204},
            "ppo-sft": {"reward": {"value": 0.231, "low": 0.187, "high": 0.276, "p": 0.0002}},
        },
        "reward_model": {
            "engagement": {"pearson": 0.632, "pearson-low": 0.601, "pearson-high": 0.661, "spearman": 0.604,
                           "n": 2113, "liked": 0.211, "ceiling": 0.871, "ceiling-low": 0.85, "ceiling-high": 0.89,
                           "ceiling-from": "upper bound: drawn anew", "slope": 0.934, "slope-low": 0.91,
                           "slope-high": 0.96, "intercept": -0.023, "intercept-low": -0.05, "intercept-high": 0.01,
                           "ece": 0.071, "ece-low": 0.06, "ece-high": 0.09, "ece-chance": 0.042},
            "relevance": {"pearson": 0.914, "spearman": 0.903, "n": 2113, "liked": 0.087, "ceiling": 1.0,
                          "ceiling-from": "exact"},
            "sentiment": {"pearson": 0.287, "spearman": 0.263, "n": 1987, "liked": 0.164},
            "available": {"latency": 2113, "uptake": 1711},
        },
        "sentiment_classifier": {
            "classifier": "vader", "answers": 9001,
            "liked": {"auc": 0.731, "auc-low": 0.71, "auc-high": 0.75, "accuracy": 0.882, "balanced-accuracy": 0.614,
                      "majority": 0.913, "undecided": 0.237, "undecided-low": 0.22, "undecided-high": 0.25,
                      "positives": 7211, "n": 8425},
            "mood": {"pearson": 0.896, "n": 9001},
        },
        "signals": {
            "liked": {
                "uptake": {"pearson": 0.201, "pearson-low": 0.15, "pearson-high": 0.25, "spearman": 0.21, "auc": 0.672,
                           "auc-low": 0.65, "auc-high": 0.69, "positives": 7211, "n": 8425},
                "sentiment": {"pearson": 0.214, "auc": 0.723, "n": 8425},
            },
        },
        "ppo": {"kl": 2.871, "entropy": 6.44, "reward": 0.259, "iterations": 100, "clip_fraction": 0.087},
        "optimum": {"share": {"value": 0.74, "low": 0.7, "high": 0.78}, "kl": 1.2, "beta": 0.41},
        "health": {"length": "replies went from 11 to 7 tokens, a factor beyond 1.5",
                   "test-recommends": "replies on test that recommend went from 41 to 91 %; people: 46 %"},
        "monitors": {
            "kl": {"kind": "kl", "measure": "KL to the SFT policy, nats a reply", "before": 0.12, "now": 2.871,
                   "bound": "above 10", "bad": False, "text": "KL is 2.9"},
            "length": {"kind": "length", "measure": "Reply length, tokens", "before": 11.0, "now": 7.0,
                       "bound": "a factor beyond 1.5, up or down", "bad": True, "text": "replies went from 11 to 7"},
            "test-recommends": {"kind": "test-recommends", "measure": "Test replies that recommend, share",
                                "before": 0.407, "now": 0.913, "bound": "more than 0.15 from SFT's", "bad": True,
                                "text": "replies on test that recommend went from 41 to 91 %"},
            "test-perplexity": {"kind": "test-perplexity", "measure": "Test perplexity of people's replies",
                                "before": 14.27, "now": 15.92, "bound": "above 1.25 of SFT's", "bad": False,
                                "text": "perplexity rose"},
        },
        "liked": {"ppo over sft": {"auc": 0.541, "auc-low": 0.52, "auc-high": 0.56, "positives": 640, "n": 812}},
        "simulator": {"utility_sft": 0.5523, "utility_ppo": 0.6171, "difference": 0.0648, "low": 0.0511, "high": 0.0793,
                      "n": 812, "utility_human": 0.4812, "utility_random": 0.4211, "utility_best": 0.9304},
        "data": {"train_dialogues": 3702, "validation_dialogues": 399, "test_dialogues": 546, "instances": 4198,
                 "targets": 4975, "distinct_items": 1631, "fresh_targets": 4472, "items": 6924, "skipped": 0},
        "run": {"device": "2 x cpu (AMD EPYC)", "commit": "1234abcd5678", "finished": "2026-11-25 19:20 UTC",
                "command": ["python", "-m", "crs_jax.main", "--config=configs/redial_ppo.py:scratch",
                            "--workdir=runs/redial one", "--config.data.dir=../shared/data/redial"],
                "seconds_by_stage": {"data": 41.2, "sft": 1803.4, "reward": 412.9, "ppo": 1288.1, "evaluate": 503.7},
                "versions": {"jax": "0.10.2", "flax": "0.12.8"}, "parameters": 4_513_792},
    }  # fmt: skip


def _log(workdir: pathlib.Path, rng: np.random.Generator) -> None:
    with MetricsWriter(workdir, tensorboard=False) as writer:
        for step in range(0, 1500, 10):
            loss = 3.1 + 5 * math.exp(-step / 150)
            noise = rng.normal(0, 0.12)
            writer.write(
                "sft",
                step,
                {
                    "loss": 2 * loss + noise,
                    "act_loss": loss + 2 + noise,
                    "word_loss": loss + noise,
                    "learning_rate": 1e-3 * (1 - step / 1500),
                    "grad_norm": 1 + abs(noise),
                },
            )
            if step % 250 == 0:
                writer.write(
                    "sft",
                    step,
                    {
                        "validation/act_loss": loss + 2.1,
                        "validation/word_loss": loss + 0.15,
                        "validation/hr@10": 0.14 * (1 - math.exp(-step / 400)),
                    },
                )
        for step in range(0, 300, 10):
            writer.write(
                "reward",
                step,
                {
                    "loss": 0.6 + math.exp(-step / 60) + rng.normal(0, 0.05),
                    "learning_rate": 3e-4,
                    "signals/engagement": rng.uniform(),
                },
            )
            if step % 100 == 0:
                writer.write("reward", step, {"validation/loss": 0.66 + math.exp(-step / 60)})
        for step in range(100):
            up = 1 - math.exp(-step / 40)
            writer.write("ppo", step, {
                "reward": 0.26 * up + rng.normal(0, 0.06), "reward/engagement": 0.15 * up + rng.normal(0, 0.05),
                "reward/relevance": 0.38 + 0.05 * up + rng.normal(0, 0.02), "reward/sentiment": rng.normal(0.01, 0.02),
                "kl": 2.9 * up + abs(rng.normal(0, 0.1)), "kl/act": 1.2 * up + abs(rng.normal(0, 0.05)),
                "kl/word": 1.7 * up + abs(rng.normal(0, 0.05)), "entropy/act": 4.8 - 0.7 * up,
                "entropy/word": 2.3 - 0.1 * up,
                "clip_fraction": 0.09 + rng.normal(0, 0.01), "approx_kl": 0.012 + rng.normal(0, 0.002),
                "value_loss": 0.4 - 0.2 * up, "explained_variance": 0.6 * up if step else float("nan"),
                "reply_length": 12 + 1.3 * up + rng.normal(0, 0.3), "ended": 0.98, "items_per_reply": 1.1 + 0.2 * up,
                "recommends": 0.41 + 0.5 * up,
                "learning_rate": 1e-4, "tokens_per_second": 1800 + rng.normal(0, 30)})  # fmt: skip
            if step % 20 == 0:
                words = {"bleu-4": 0.04 - 0.01 * up, "repetition": 0.02, "sentiment-reward": 0.5 + 0.3 * up,
                         "kl": 2.9 * up, "reward": 0.3 * up}  # fmt: skip
                writer.write("ppo", step, {f"validation/{name}": value for name, value in words.items()})


def _samples(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    def reply(words: str, items: list[str]) -> dict[str, Any]:
        return {"text": words, "items": items, "top": [str(t) for t in rng.permutation(TITLES)[:5]],
                "chances": [0.314, 0.121, 0.05, 0.033, 0.0104],
                "reward": rng.normal(0.1, 0.4), "engagement": rng.normal(0, 0.3), "relevance": rng.uniform(0.2, 0.6),
                "sentiment": rng.normal(0, 0.1)}  # fmt: skip

    samples: list[dict[str, Any]] = []
    for i in range(count):
        context = [
            {"role": "recommender", "text": "Hi there, what kind of movies do you enjoy?"},
            {"role": "seeker", "text": f"I loved {TITLES[i % 8]}, and slow mysteries by the sea in general."},
            {"role": "recommender", "text": f"Have you seen {TITLES[(i + 1) % 8]}?"},
            {
                "role": "seeker",
                "text": "I have, it was great! Anything a little less gloomy, maybe?" + HOSTILE * (i == 1),
            },
        ]
        samples.append({
            "dialogue_id": str(20001 + i), "turn": 4, "context": context,
            "human": {"text": f"You may like {TITLES[(i + 2) % 8]}, it is warmer.", "items": [TITLES[(i + 2) % 8]]},
            "sft": reply(f"What about {TITLES[(i + 3) % 8]}? It is a good one.", [TITLES[(i + 3) % 8]]),
            "ppo": reply(f"Then try {TITLES[(i + 2) % 8]} or {TITLES[(i + 5) % 8]}! Both are set by the sea and end "
                         "on a lighter note.", [TITLES[(i + 2) % 8], TITLES[(i + 5) % 8]])})  # fmt: skip
    samples[0]["sft"].update(items=[], relevance=float("nan"))
    return samples


def make_run(workdir: pathlib.Path, seed: int = 0, count: int = 6) -> dict[str, Any]:
    """Writes a complete workdir; returns what metrics.json holds, less its version."""
    rng = np.random.default_rng(seed)
    config = common.get_config()
    config.data.dataset = "redial"
    metrics = full_metrics(rng)
    write_versioned(workdir / "config.json", config)
    write_versioned(workdir / "metrics.json", metrics)
    write_json_lines(workdir / "samples.jsonl", _samples(rng, count))
    _log(workdir, rng)
    return read_versioned(workdir / "metrics.json")


def make_sft_run(workdir: pathlib.Path) -> dict[str, Any]:
    """A workdir after `--config.stages=sft,evaluate`: no reward model, no PPO, no simulator, no samples."""
    metrics = make_run(workdir)
    for key in (
        "paired",
        "rewards",
        "reward_model",
        "signals",
        "sentiment_classifier",
        "by_length",
        "ppo",
        "health",
        "monitors",
        "liked",
        "optimum",
        "simulator",
        "success",
        "published",
    ):
        del metrics[key]
    for table in (metrics["ranking"], metrics["text"]):
        del table["ppo"]
    write_versioned(workdir / "metrics.json", metrics)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(line for line in lines if '"stage": "sft"' in line))
    (workdir / "samples.jsonl").unlink()
    return metrics
