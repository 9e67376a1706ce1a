"""The stages in order. Each reads what the ones before it left in the workdir and is skipped where it is done."""

from __future__ import annotations

import datetime
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from crs_jax import config as settings
from crs_jax.errors import InputError
from crs_jax.evaluation.signals import correlation
from crs_jax.evaluation.stage import run_evaluate
from crs_jax.metrics import MetricsWriter, read_json, read_json_lines, write_json, write_json_lines
from crs_jax.models.heads import SIGNALS
from crs_jax.prepare import prepare
from crs_jax.progress import duration, mute, print_summary, print_table, say
from crs_jax.report import write_report
from crs_jax.sharding import make_mesh
from crs_jax.training.labels import label
from crs_jax.training.ppo_stage import Model, run_ppo
from crs_jax.training.reward import predict_replies, run_reward, split_holdout
from crs_jax.training.sft import run_sft
from crs_jax.training.task import Task, count, new_policy, split_model


def run(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Runs `config.stages` in `workdir`; returns the report's path."""
    settings.validate(config)
    stages = settings.stages(config)
    workdir = pathlib.Path(workdir).expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be made ({error.strerror}); choose another folder") from None
    first = jax.process_index() == 0
    if not first:
        mute()
    sizes = settings.derive(config, jax.device_count())
    mesh = make_mesh(config)
    started, seconds = time.monotonic(), {}
    write_json(workdir / "config.json", config.to_dict(), enabled=first)

    clock = time.monotonic()
    task = prepare(config, workdir, mesh)
    seconds["prepare"] = time.monotonic() - clock
    parameters = count(split_model(new_policy(task))[1])
    print_summary(
        f"crs_jax, {config.data.dataset}",
        {
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
            "parameters": f"{parameters:,}",
            "dialogues": f"{len(task.corpus.train)} train, {len(task.corpus.validation)} validation, "
            f"{len(task.corpus.test)} test",
            "items": len(task.corpus.catalogue),
            "vocabulary": f"{task.layout.num_words} words, {task.layout.num_items} items",
            "stages": ", ".join(stages),
            "workdir": str(workdir),
            **sizes,
        },
        enabled=first,
    )
    metrics: dict[str, Any] = _previous(workdir)
    run_stages(task, stages, metrics, seconds, first)
    metrics["run"] = {
        **_run_facts(config),
        "parameters": parameters,
        "seconds_by_stage": {**metrics.get("run", {}).get("seconds_by_stage", {}), **_spent(seconds)},
        "seconds": time.monotonic() - started,
    }
    report = workdir / "report.html"
    if first:
        write_json(workdir / "metrics.json", metrics)
        report = write_report(workdir)
        headline(metrics)
        say(f"done in {duration(time.monotonic() - started)}: {report}")
    return report


def run_stages(task: Task, stages: tuple[str, ...], metrics: dict, seconds: dict, first: bool) -> None:
    """Runs the stages, filling `metrics` and `seconds` as each ends."""
    config, workdir = task.config, task.workdir
    with MetricsWriter(workdir, enabled=first) as writer:

        def timed(stage: str, function, *arguments):
            clock = time.monotonic()
            result = function(*arguments)
            seconds[stage] = time.monotonic() - clock
            return result

        sft = timed("sft", run_sft, task, writer) if _needed("sft", stages, workdir) else None
        reward = aligned = None
        if _needed("reward", stages, workdir):
            reward = timed("reward", run_reward, task, writer, _have(sft, "sft", "reward"))
            if "reward" in stages:
                metrics["reward_model"] = held_out(task, reward)
                print_held_out(metrics["reward_model"], first)
        if _needed("ppo", stages, workdir):
            aligned = timed("ppo", run_ppo, task, writer, _have(sft, "sft", "ppo"), _have(reward, "reward", "ppo"))
        if aligned is not None:
            metrics["ppo"] = last_ppo(workdir)
        if "evaluate" in stages:
            models: dict[str, Model] = {"sft": _have(sft, "sft", "evaluate")}
            if aligned is not None:
                models["ppo"] = aligned.policy
            found, samples = timed("evaluate", run_evaluate, task, models, aligned)
            metrics.update(found)
            if aligned is not None:
                ppo = found["rewards"]["ppo"]
                metrics["ppo"] |= {name: ppo[name] for name in ("reward", "kl", *SIGNALS)}
                metrics["ppo"]["entropy"] = ppo["entropy-act"] + ppo["entropy-word"]
            write_json_lines(workdir / "samples.jsonl", samples, enabled=first)
    del config


def _needed(stage: str, stages: tuple[str, ...], workdir: pathlib.Path) -> bool:
    """A stage is run or loaded where it is asked for, or where it was done and a later one wants it."""
    return stage in stages or (workdir / "checkpoints" / stage).is_dir()


def _have(model: Any, stage: str, wanted_by: str) -> Any:
    if model is None:
        raise InputError(f"--config.stages: {wanted_by} needs {stage}, which this workdir does not hold; add {stage}")
    return model


def _previous(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / "metrics.json"
    return read_json(path) if path.exists() else {}


def _spent(seconds: dict[str, float]) -> dict[str, float]:
    """Stages loaded from a checkpoint took no time worth reporting: their first figure stays."""
    return {stage: value for stage, value in seconds.items() if value > 5 or stage in ("prepare", "evaluate")}


def held_out(task: Task, reward: Model) -> dict[str, Any]:
    """Correlation of predicted and observed signals on held-out training dialogues."""
    signal_DTS = label(task, "train").signal_DTS
    _, held = split_holdout(task)
    chosen = set(held.tolist())
    where = [(d, t) for d, t in task.replies("train") if d in chosen and np.isfinite(signal_DTS[d, t]).any()]
    predicted_PS = predict_replies(task, *reward, "train", where)
    observed_PS = np.array([signal_DTS[d, t] for d, t in where]).reshape(-1, len(SIGNALS))
    group_P = np.array([d for d, _ in where])
    bootstrap = task.config.evaluation.bootstrap
    found: dict[str, Any] = {
        name: correlation(predicted_PS[:, s], observed_PS[:, s], group_P, bootstrap) for s, name in enumerate(SIGNALS)
    }
    return found | {"available": label(task, "train").available}


def print_held_out(found: dict[str, Any], enabled: bool) -> None:
    """The reward model's table on the console."""
    rows = [
        [
            name,
            f"{v['pearson']:.3f}",
            f"{v['pearson-low']:.3f} .. {v['pearson-high']:.3f}",
            f"{v['spearman']:.3f}",
            v["n"],
        ]
        for name, v in found.items()
        if name in SIGNALS
    ]
    columns = ["signal", "pearson", "95 %", "spearman", "n"]
    print_table("reward model, held-out replies", columns, rows, enabled=enabled)


def last_ppo(workdir: pathlib.Path) -> dict[str, Any]:
    """The last logged iteration."""
    lines = [line for line in read_json_lines(workdir / "metrics.jsonl") if line["stage"] == "ppo"]
    return {} if not lines else {name: value for name, value in lines[-1].items() if name not in ("stage", "step")}


def headline(metrics: dict[str, Any]) -> None:
    """The few figures a run is read for."""
    ranking = metrics.get("ranking", {})
    columns = ["row", "hr@1", "hr@10", "hr@50", "ndcg@10", "mrr@10"]
    for targets in ("fresh", "all"):
        rows = [
            [row, *(f"{found[targets]['full'].get(c, {}).get('value', float('nan')):.4f}" for c in columns[1:])]
            for row, found in ranking.items()
        ]
        if rows:
            print_table(f"{targets} targets, full catalogue", columns, rows)
    if "simulator" in metrics and "difference" in metrics["simulator"]:
        s = metrics["simulator"]
        say(
            f"true utility: sft {s['utility_sft']:.4f}, ppo {s['utility_ppo']:.4f}, "
            f"difference {s['difference']:+.4f} (95 % {s['low']:+.4f} .. {s['high']:+.4f})"
        )


def _run_facts(config: ConfigDict) -> dict[str, Any]:
    import flax

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "crs_jax.main", *sys.argv[1:]]),
        "seed": config.seed,
        "stages": config.stages,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Commit of the source tree, `+` where it is changed; empty where it is none."""
    here = pathlib.Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True,
            timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")
