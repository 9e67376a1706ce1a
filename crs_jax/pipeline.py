"""The stages in order. Each reads what the ones before it left in the workdir and is skipped where it is done."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.multihost_utils import sync_global_devices
from ml_collections import ConfigDict

from crs_jax import config as settings
from crs_jax import preflight
from crs_jax.evaluation.classifier import classifier_error, say_error
from crs_jax.evaluation.console import headline, print_held_out
from crs_jax.evaluation.observed import signal_table
from crs_jax.evaluation.stage import run_evaluate
from crs_jax.inputs.labels import known_log
from crs_jax.inputs.task import SPLITS, Task, corpus_rates, count, new_policy, split_model
from crs_jax.models import attention
from crs_jax.prepare import made_from, prepare
from crs_jax.runtime import weights_and_biases
from crs_jax.runtime.checkpoint import digest, done_meta
from crs_jax.runtime.compilation import keep_programs
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import flatten
from crs_jax.runtime.json_files import write_json_lines
from crs_jax.runtime.memory import fitting
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.processes import process_guard, refuse_unless_shared
from crs_jax.runtime.progress import duration, mute, print_summary, say
from crs_jax.runtime.sharding import make_mesh, place
from crs_jax.runtime.source_tree import commit
from crs_jax.runtime.storage import claimed, writing
from crs_jax.runtime.versions import read_versioned, write_versioned
from crs_jax.signals.registry import rewards
from crs_jax.training.health import monitors, warnings
from crs_jax.training.held_out import held_out
from crs_jax.training.own_reward import own_reward
from crs_jax.training.ppo_stage import Aligned, Model, logged, run_ppo
from crs_jax.training.reward import run_reward
from crs_jax.training.sft import run_sft
from crs_jax.training.transfer import source_of, transferred

# Sections of metrics.json that an evaluation owns: they go when a model they speak of is trained anew.
EVALUATED = (
    "data",
    "ranking",
    "paired",
    "by_length",
    "success",
    "text",
    "rewards",
    "liked",
    "optimum",
    "simulator",
    "published",
    "evaluated",
)

HELD_OUT = ("reward_model", "signals", "sentiment_classifier")  # the same of the models before PPO


Report = Callable[[pathlib.Path], pathlib.Path]
"""Makes a page of a workdir and returns its path."""


def run(config: ConfigDict, workdir: pathlib.Path, report: Report, flags: Sequence[str] | None = None) -> None:
    """Runs `config.stages` in `workdir` and ends with the report.

    `flags` are those of the same run as a command, to be noted; by default this process' own.
    """
    settings.validate(config)
    keep_programs()
    workdir, first = pathlib.Path(workdir).expanduser(), jax.process_index() == 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be made ({error.strerror}); choose another folder") from None
    precision = jax.default_matmul_precision(config.model.matmul)  # a GPU's or TPU's own has fewer bits than float32
    with process_guard(), writing(workdir), claimed(workdir) if first else contextlib.nullcontext(), precision:
        refuse_unless_shared(workdir)
        _run(config, workdir, report, sys.argv[1:] if flags is None else flags)


def _run(config: ConfigDict, workdir: pathlib.Path, report: Report, flags: Sequence[str]) -> None:
    stages, first = settings.stages(config), jax.process_index() == 0
    if not first:
        mute()
    if config.model.transfer:
        source_of(config)
        if (workdir / "checkpoints").is_dir():
            raise InputError(f"--workdir={workdir}: it holds models of its own; --config.model.transfer needs another")
    sizes = settings.derive(config, jax.device_count())
    attention.refuse_where_missing(config.model.attention)
    weights_and_biases.refuse_where_missing(config)
    preflight.check(config, workdir, stages, first)
    mesh = make_mesh(config)
    started, facts = time.monotonic(), run_facts(config, flags)
    print_summary(
        f"crs_jax, {config.data.dataset}",
        {
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
            "stages": ", ".join(stages),
            "workdir": str(workdir),
            **{name: value for name, value in sizes.items() if name not in ("devices", "mesh")},
        },
    )
    if not first:
        sync_global_devices("prepared")  # process 0 fills the shared workdir's caches, the others read them
    with fitting("prepare", config, workdir):
        task = prepare(config, workdir, mesh)
    if first and jax.process_count() > 1:
        sync_global_devices("prepared")
    if {"reward", "ppo"} & set(stages):  # what these would meet after the stages before them
        known_log(task)
        own_reward(task)
    preflight.load_classifier(config, workdir, stages)
    seconds = {"prepare": time.monotonic() - started}
    parameters = count(split_model(new_policy(task))[1])
    print_summary(
        "data and model",
        {
            "dialogues": f"{len(task.corpus.train)} train, {len(task.corpus.validation)} validation, "
            f"{len(task.corpus.test)} test",
            "items": len(task.corpus.catalogue),
            "vocabulary": f"{task.layout.num_words} words, {task.layout.num_items} items",
            "parameters": f"{parameters:,}",
        },
    )
    path = workdir / "metrics.json"
    metrics: dict[str, Any] = read_versioned(path) if path.exists() else {}
    worked = run_stages(task, stages, metrics, seconds, first)
    if worked or "run" not in metrics:
        before = metrics.get("run", {}).get("seconds_by_stage", {})
        metrics["run"] = {
            **facts,
            "parameters": parameters,
            "seconds_by_stage": {**seconds, **before, **{s: v for s, v in seconds.items() if s in worked}},
            "seconds": time.monotonic() - started,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    if first:
        write_versioned(workdir / "config.json", config)
        write_versioned(path, metrics)
        page = report(workdir)
        headline(metrics)
        say(f"done in {duration(time.monotonic() - started)}: {page}")


def run_stages(task: Task, stages: tuple[str, ...], metrics: dict, seconds: dict[str, float], first: bool) -> list[str]:
    """Runs the stages, filling `metrics` and `seconds` as each ends; returns those that had work to do.

    A stage that is not asked for is loaded where this workdir holds it whole and one that is asked for can use it.
    """
    workdir = task.workdir
    known = {stage: done_meta(workdir, stage) for stage in ("sft", "reward", "ppo")}
    worked: list[str] = []
    wandb = weights_and_biases.WandbRun(workdir, task.config) if first and task.config.wandb.project else None
    with MetricsWriter(workdir, enabled=first, wandb=wandb) as writer:

        def model(stage: str, function: Callable, *inputs: Any) -> Any:
            later = settings.STAGES[settings.STAGES.index(stage) + 1 :]
            if stage not in stages and not (known[stage] and any(s in stages for s in later)):
                return None
            with fitting(stage, task.config, workdir):
                result = function(task, writer, *(_have(i, need, stage) for need, i in inputs))
            if not known[stage]:
                worked.append(stage)
                for name in (*EVALUATED, *(HELD_OUT if stage != "ppo" else ()), "ppo", "health", "monitors"):
                    metrics.pop(name, None)
            seconds[stage] = done_meta(workdir, stage)["seconds"]
            return result

        sft = model("sft", run_sft)
        reward = model("reward", run_reward, ("sft", sft))
        if reward is not None and "reward_model" not in metrics:
            with fitting("evaluate", task.config, workdir):
                metrics["reward_model"], metrics["labels"] = held_out(task, reward)
            metrics["signals"] = signal_table(task, "validation")
            metrics["sentiment_classifier"] = classifier_error(task, "validation")
            print_held_out(metrics["reward_model"])
            say_error(metrics["sentiment_classifier"])
        aligned: Aligned | None = model("ppo", run_ppo, ("sft", sft), ("reward", reward))
        if aligned is not None and "ppo" not in metrics:
            metrics["ppo"] = last_ppo(workdir)
        if aligned is not None:
            watch(workdir, metrics)
        if "evaluate" in stages:
            if task.config.model.transfer:
                models: dict[str, Model] = transferred(task)
            elif sft is None and task.config.model.init != "scratch":
                say(f"evaluate: no sft model here; row init is {task.config.model.init} as it is")
                graphdef, *arrays = split_model(new_policy(task, corpus_rates(task)))
                models = {"init": (graphdef, *(place(tree, task.mesh) for tree in arrays))}
            else:
                models = {"sft": _have(sft, "sft", "evaluate")}
            if aligned is not None:
                models["ppo"] = aligned.policy
            of, clock = evaluation_key(task, models), time.monotonic()
            if metrics.get("evaluated") == of:
                say("evaluate: done before, with the same models and settings")
                return worked
            with fitting("evaluate", task.config, workdir):
                found, samples = run_evaluate(task, models, aligned)
            seconds["evaluate"] = time.monotonic() - clock
            worked.append("evaluate")
            for name in EVALUATED:
                metrics.pop(name, None)
            if task.config.model.transfer:
                found["data"]["transferred_from"] = task.config.model.transfer
            metrics.update(found, evaluated=of)
            if aligned is not None:
                after = found["rewards"]["ppo"]
                metrics["ppo"] |= {name: after[name]["value"] for name in ("reward", "kl", *rewards()) if name in after}
                metrics["ppo"] |= {"entropy": after["entropy"]}
                watch(workdir, metrics)
            write_json_lines(workdir / "samples.jsonl", samples, enabled=first)
            writer.summary(found)
    return worked


def evaluation_key(task: Task, models: dict[str, Model]) -> str:
    """Of what an evaluation depends on: settings, data, and the models' parameters."""
    free = ("stages", "log_every", "save_minutes", "data.cache_dir", "data.dir", "data.pipeline")
    flat = {name: value for name, value in flatten(task.config.to_dict()).items() if name not in free}
    flat = {name: value for name, value in flat.items() if not name.startswith("wandb.")}
    data = made_from(task.config, task.corpus, task.tokenizer, SPLITS)
    key = [flat, data, {row: digest(params) for row, (_, params, _) in models.items()}]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _have(model: Any, stage: str, wanted_by: str) -> Any:
    if model is None:
        raise InputError(f"--config.stages: {wanted_by} needs {stage}, which this workdir does not hold; add {stage}")
    return model


def last_ppo(workdir: pathlib.Path) -> dict[str, Any]:
    """The last logged iteration."""
    lines = [line for line in logged(workdir) if "reward" in line]
    return {} if not lines else {name: value for name, value in lines[-1].items() if name not in ("stage", "step")}


def watch(workdir: pathlib.Path, metrics: dict[str, Any]) -> None:
    """Fills `monitors` and `health`: from PPO's log and, where they are there, from the evaluation's sections."""
    lines = logged(workdir)
    metrics["monitors"] = {monitor.kind: monitor._asdict() for monitor in monitors(lines, metrics)}
    metrics["health"] = warnings(lines, metrics)


def run_facts(config: ConfigDict, flags: Sequence[str]) -> dict[str, Any]:
    """Who made the figures: taken at the start, so that the commit is that of the code that ran."""
    import flax

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "crs_jax.main", *flags]),
        "seed": config.seed,
        "stages": config.stages,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__},
    }
