"""Memory that does not suffice, for real: one line names what takes less of it, and what was saved is gone on from."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from small_run import FINISHED, command

import crs_jax
from configs.common import get_config
from crs_jax import main, pipeline
from crs_jax.config import fields
from crs_jax.runtime.errors import InputError, TrainingHaltedError
from crs_jax.runtime.memory import LESS, fitting
from crs_jax.tools.api import loading


def on_the_host(*_):
    np.ones(2**58)


def on_the_device(*_):
    jnp.ones(2**44).block_until_ready()


@pytest.mark.parametrize("exhaust", [on_the_host, on_the_device])
@pytest.mark.parametrize("stage", LESS)
def test_a_stage_names_what_to_lower(stage, exhaust, tmp_path):
    config = get_config()
    with pytest.raises(InputError, match=f"^{stage}: out of memory; .*kept and gone on from") as caught, \
            fitting(stage, config, tmp_path):  # fmt: skip
        exhaust()
    known = dict(fields(config))
    for path in (path for paths in LESS[stage] for path in paths):
        assert f"--config.{path} ({known[path]} now)" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError), fitting("sft", get_config(), tmp_path):
        1 / 0  # noqa: B018


def said(workdir, capsys, *changes: str) -> tuple[int, str]:
    """Status and stderr of the finished run's command with other settings."""
    status = main.main([*command(workdir, **FINISHED)[2:], *changes], flags.FlagValues())
    return status, capsys.readouterr().err


@pytest.fixture
def workdir(finished_run, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_program_out_of_memory_says_it_in_one_line_and_goes_on(workdir, capsys, monkeypatch):
    """Each stage in its turn; at last with other micro-batches, from what was saved."""
    for name, stage in (("run_sft", "sft"), ("run_evaluate", "evaluate")):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, on_the_device)
            status, line = said(workdir, capsys, "--config.evaluation.bootstrap=51", "--config.sft.accumulate=2")
        assert status == 2
        assert line.startswith(f"error: {stage}: out of memory; ")
        assert line.count("\n") == 1

    class DoneError(Exception):
        pass

    def done(*_):
        raise DoneError

    monkeypatch.setattr(pipeline, "run_evaluate", done)
    with pytest.raises(DoneError):  # the stages before it are there, as saved with other micro-batches
        said(workdir, capsys, "--config.sft.accumulate=2", "--config.reward.accumulate=2", "--config.ppo.accumulate=2",
             "--config.evaluation.bootstrap=51")  # fmt: skip


def test_loading_that_does_not_fit_is_one_line(finished_run, monkeypatch):
    for exhaust in (on_the_host, on_the_device):
        monkeypatch.setattr(loading, "_models", exhaust)
        with pytest.raises(InputError, match=r"^workdir='.*': its models do not fit the memory that is free"):
            crs_jax.load(finished_run)


def test_a_run_that_diverges_has_a_status_of_its_own_line(workdir, capsys, monkeypatch):
    def diverges(*_):
        raise TrainingHaltedError("sft: step 3 met a NaN or an infinity (loss)")

    monkeypatch.setattr(pipeline, "run_sft", diverges)
    assert said(workdir, capsys) == (1, "error: sft: step 3 met a NaN or an infinity (loss)\n")
