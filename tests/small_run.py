"""A whole run as a user starts it, in a small form, and what of it must be the same whatever happened on the way."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from waits import HANGS

from crs_jax.runtime.checkpoint import flatten, load_result

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {
    "simulator.catalogue_size": 24,
    "simulator.train_dialogues": 40,
    "simulator.test_dialogues": 10,
    "data.validation_dialogues": 8,
    "data.context_tokens": 48,
    "data.reply_tokens": 16,
    "tokenizer.vocab_size": 400,
    "encoder.max_tokens": 16,
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 2,
    "sft.epochs": 1,
    "sft.row_tokens": 96,
    "reward.epochs": 1,
    "ppo.iterations": 3,
    "ppo.contexts": 4,
    "ppo.group": 2,
    "ppo.minibatches": 2,
    "evaluation.bootstrap": 50,
    "evaluation.generate": 8,
    "evaluation.samples": 3,
    "evaluation.batch": 8,
}
FINISHED = {"log_every": 1, "ppo.iterations": 6, "sft.epochs": 2}
"""What the fixture `finished_run` has besides."""
TIMES = ("seconds", "tokens_per_second")
SIGNAL_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def command(workdir, *flags: str, **settings) -> list[str]:
    changes = [f"--config.{name}={value}" for name, value in {**SMALL, **settings}.items()]
    return [sys.executable, "-m", "crs_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}", *changes,
            *flags]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(workdir, **settings) -> subprocess.CompletedProcess:
    line = command(workdir, **settings)
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=HANGS)


def start(workdir, *flags: str, **settings) -> subprocess.Popen:
    """A run that goes on beside the test; what it says is read at its end."""
    line = command(workdir, *flags, **settings)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=environment(), **pipes)


def logged(workdir) -> list[dict]:
    """The lines of metrics.jsonl that are whole, without times."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def outcome(workdir) -> dict:
    """All that a finished run leaves, but for times and the command: figures, logs, samples and models, as bytes."""
    workdir = pathlib.Path(workdir)
    metrics = json.loads((workdir / "metrics.json").read_text())
    metrics.pop("run")
    models = {}
    for stage in ("sft", "reward", "ppo"):
        leaves = jax.tree.leaves(load_result(workdir, stage))
        models[stage] = [np.asarray(leaf).tobytes() for leaf in leaves]
    samples = (workdir / "samples.jsonl").read_text()
    return {"metrics": metrics, "log": logged(workdir), "samples": samples, "models": models}


def assert_same(found: dict, expected: dict) -> None:
    assert found["log"] == expected["log"]
    assert found["models"] == expected["models"]
    figures = [flatten(each["metrics"]) for each in (found, expected)]
    changed = {name for name in figures[0].keys() | figures[1].keys() if figures[0].get(name) != figures[1].get(name)}
    assert {name for name in changed if name.rsplit(".", 1)[-1] not in TIMES} == set()
    assert found["samples"] == expected["samples"]


def saving(workdir, stage: str = "*") -> bool:
    """Whether a checkpoint is being written: orbax' name for one that is not whole yet."""
    return any((pathlib.Path(workdir) / "checkpoints").glob(f"{stage}/*.orbax-checkpoint-tmp*"))


def kill_somewhere(process: subprocess.Popen, workdir, rng: random.Random) -> str:
    """`kill -9` after some more steps, in a save or after some seconds; where it was, or "" where it had ended."""
    how, lines = rng.choice(("steps", "save", "seconds")), len(logged(workdir))
    enough, until = lines + rng.randint(1, 30), time.monotonic() + rng.uniform(2.0, 60.0)
    while process.poll() is None:
        if how == "steps" and len(logged(workdir)) >= enough:
            time.sleep(rng.uniform(0.0, 0.5))
        elif not (how == "save" and saving(workdir)) and not (how == "seconds" and time.monotonic() > until):
            time.sleep(0.001 if how == "save" else 0.02)
            continue
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            return ""
        last = logged(workdir)
        return f"{how} in {last[-1]['stage'] if last else 'data'}"
    process.communicate()
    return ""


def soak(folder: pathlib.Path, expected: dict, kills: int, seed: int, **settings) -> list[str]:
    """Kills runs so often in all, brings each to its end and compares it; where they were killed."""
    rng, where, number = random.Random(seed), [], 0
    while len(where) < kills:
        workdir, number = folder / f"run-{number}", number + 1
        met = 0
        while len(where) < kills and met < 8:  # then it may end, so that ends are compared too
            process = start(workdir, **settings)
            if not (place := kill_somewhere(process, workdir, rng)):
                break
            where.append(place)
            met += 1
        done = run(workdir, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same(outcome(workdir), expected)
    return where
