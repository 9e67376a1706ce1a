"""The command line, in one process: the pipeline is replaced, so that only parsing is tested."""

import pathlib
import subprocess
import sys
import types

import pytest
from absl import flags
from waits import HANGS

import crs_jax
from crs_jax import main
from crs_jax.runtime.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs main on arguments from the repository's root; `calls` holds what the pipeline was given."""
    calls = []
    pipeline = types.ModuleType("crs_jax.pipeline")
    pipeline.run = lambda config, workdir, report: calls.append((config, workdir))
    monkeypatch.setitem(sys.modules, "crs_jax.pipeline", pipeline)
    monkeypatch.setattr(crs_jax, "pipeline", pipeline, raising=False)
    monkeypatch.chdir(ROOT)

    def call(*arguments):
        return main.main(["crs_jax", *arguments], flags.FlagValues())

    call.calls, call.pipeline = calls, pipeline
    return call


def test_passes_config_and_workdir(run, tmp_path):
    status = run(
        QUICKSTART,
        f"--workdir={tmp_path}",
        "--config.reward.alpha=0",
        "--config.data.window",
        "4",
        "--config.model.remat",
        "--config.stages=sft,evaluate",
        "--config.evaluation.ks=(1, 7)",
    )
    ((config, workdir),) = run.calls
    assert status == 0
    assert workdir == tmp_path
    assert config.reward.alpha == 0.0
    assert isinstance(config.reward.alpha, float)
    assert config.data.window == 4
    assert config.model.remat is True
    assert config.stages == "sft,evaluate"
    assert config.evaluation.ks == (1, 7)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.reward.alhpa = 1.0


@pytest.mark.parametrize(
    ("config", "folder"),
    [("configs/quickstart.py", "runs/quickstart"), ("configs/redial_ppo.py", "runs/redial_ppo")],
)
def test_default_workdir(run, config, folder):
    assert run(f"--config={config}") == 0
    assert run.calls[0][1] == pathlib.Path(folder)


def test_default_workdir_carries_the_variant(run, tmp_path):
    assert run("--config=configs/redial_ppo.py:tiny", f"--config.data.dir={tmp_path}") == 0
    assert run.calls[0][1] == pathlib.Path("runs/redial_ppo-tiny")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.reward.alhpa=0"], ["--config.reward.alhpa", "did you mean --config.reward.alpha?"]),
        (["--config.alpha=0"], ["--config.alpha", "--config.reward.alpha"]),
        (["--config.clip=0.1"], ["--config.clip", "--config.ppo.clip", "--config.reward.clip"]),
        (["--config.nonsense.zzz=0"], ["--config.nonsense.zzz", "no such setting", "--helpfull"]),
        (["--noconfig.model.remta"], ["--config.model.remta", "--config.model.remat"]),
        (["--noconfig.ppo.clip"], ["--noconfig.ppo.clip", "true or false"]),
        (["--config.ppo={'clip': 0.1}"], ["--config.ppo:", "group"]),
        (["--config.ppo.clip=abc"], ["--config.ppo.clip=abc", "a number", "0.2"]),
        (["--config.ppo.epochs=1.5"], ["--config.ppo.epochs=1.5", "whole number"]),
        (["--config.model.remat=perhaps"], ["--config.model.remat=perhaps", "true or false"]),
        (["--config.stages=sft,pretrain"], ["--config.stages", "'pretrain'", "sft, reward, ppo, evaluate"]),
        (["--config.model.heads=5"], ["--config.model.heads=5", "--config.model.width=128"]),
        (["--wrkdir=x"], ["wrkdir", "workdir"]),
        (["stray"], ["'stray'"]),
        (["--workdir=README.md"], ["--workdir=README.md", "file"]),
        (["--process=1"], ["--process", "--distributed"]),
        (["--processes=two"], ["--processes=two"]),
        (["--distributed", "--coordinator=node1"], ["--coordinator=node1", "HOST:PORT"]),
        (["--workdir=gs://bucket/run"], ["--workdir=gs://bucket/run", "mounted"]),
    ],
)
def test_one_clear_line(run, capsys, arguments, parts):
    assert run(QUICKSTART, *arguments) == 2
    _one_line(capsys, parts)
    assert not run.calls


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config is missing", "configs/quickstart.py"]),
        (["--config.ppo.clip=1"], ["--config is missing"]),
        (["--config=configs/nowhere.py"], ["configs/nowhere.py", "no file", "configs/redial_ppo.py"]),
        (["--config=configs/redial_ppo.py:huge"], ["'huge'", ":scratch", ":tiny"]),
        (["--config=configs/quickstart.py:huge"], [":huge", "no variants"]),
        (["--config.seed=1", QUICKSTART], ["--config.seed=1", "before"]),
        (["--config=configs/redial_ppo.py:tiny"], ["--config.data.dir", "folder"]),
        (["--config=README.md"], ["README.md"]),
    ],
)
def test_config_that_cannot_be_had(run, capsys, arguments, parts):
    assert run(*arguments) == 2
    _one_line(capsys, parts)


def test_config_file_that_fails_names_its_line(run, capsys, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from configs import common\n\ndef get_config():\n    c = common.get_config()\n    c.seed = 'x'\n")
    assert run(f"--config={path}") == 2
    _one_line(capsys, [f"{path}:5", "TypeError"])


def test_input_error_of_the_pipeline(run, capsys):
    def fail(config, workdir, report):
        raise InputError("train_data.jsonl:7: no messages;\n delete the line")

    run.pipeline.run = fail
    assert run(QUICKSTART) == 2
    _one_line(capsys, ["train_data.jsonl:7: no messages; delete the line"])


def test_other_errors_keep_their_traceback(run):
    def fail(config, workdir, report):
        raise ZeroDivisionError

    run.pipeline.run = fail
    with pytest.raises(ZeroDivisionError):
        run(QUICKSTART)


def test_interrupt_says_what_is_kept(run, capsys, tmp_path):
    def fail(config, workdir, report):
        raise KeyboardInterrupt

    run.pipeline.run = fail
    assert run(QUICKSTART, f"--workdir={tmp_path}") == 130
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert "same command continues" in message


def test_distributed_initialises_jax(run, monkeypatch):
    import jax

    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: given.append(arguments))
    assert run(QUICKSTART) == 0
    assert given == []
    assert run(QUICKSTART, "--distributed", "--coordinator=localhost:1234", "--processes=2", "--process=1") == 0
    assert given == [{"coordinator_address": "localhost:1234", "num_processes": 2, "process_id": 1}]
    assert run(QUICKSTART, "--distributed=true") == 0
    assert given[1:] == [{}]


def test_helpfull_explains_every_setting(run, capsys):
    from configs import common
    from crs_jax.config import fields

    assert run(QUICKSTART, "--helpfull") == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    for path, _ in fields(common.get_config()):
        assert path in lines
    assert "1018" in lines["tokenizer.vocab_size"]  # this config's value, with the default's comment
    assert "before the six control tokens" in lines["tokenizer.vocab_size"]
    assert "Examples" in text
    assert not run.calls


def test_help_is_short(run, capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "--workdir" in text
    assert "--helpfull" in text
    assert len(text.splitlines()) < 40


def test_as_a_program(tmp_path):
    """The real entry, once: absl's global flags, the exit status, no traceback and no slow import before the error."""
    command = [sys.executable, "-X", "importtime", "-m", "crs_jax.main", QUICKSTART, "--config.reward.alhpa=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert "did you mean --config.reward.alpha?" in errors[0]
    assert "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "crs_jax.flags" in imported
    assert not imported & {"jax", "torch", "tensorflow", "transformers", "datasets"}


def test_main_is_short():
    assert len((ROOT / "crs_jax" / "main.py").read_text().splitlines()) < 100


def _one_line(capsys, parts):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err
