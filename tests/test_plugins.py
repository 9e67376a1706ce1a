"""A file outside the package adds an algorithm: it is chosen by a flag and goes through a run, with no other change."""

import subprocess
import sys

import pytest
import small_run
from absl import flags

import crs_jax
from crs_jax import plugins
from crs_jax.config import derive
from crs_jax.flags import parse
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import read_json

TOY = """
import jax.numpy as jnp

from crs_jax.rl.algorithms import ALGORITHMS, Algorithm


def beyond_the_median(score_CG, size_CG):
    return score_CG - jnp.median(score_CG, 1, keepdims=True)


ALGORITHMS["median"] = Algorithm(beyond_the_median)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The plugin; what it adds to this process is taken away again."""
    before = dict(ALGORITHMS)
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    yield path
    plugins._loaded.clear()
    for name in ALGORITHMS.keys() - before.keys():
        del ALGORITHMS[name]


def parsed(*arguments):
    return parse(["main", "--config=configs/quickstart.py", *arguments], flags.FlagValues()).config


def test_its_name_is_a_choice_once_it_is_given(toy, monkeypatch):
    monkeypatch.chdir(small_run.ROOT)
    with pytest.raises(InputError, match=r"--config\.algorithm='median': must be one of ppo, "):
        parsed("--config.algorithm=median")
    for flag in (f"--plugins={toy}", f"--config.plugins={toy}"):
        config = parsed("--config.algorithm=median", flag)
        assert (config.algorithm, config.plugins) == ("median", str(toy))
    with pytest.raises(InputError, match=r"--config\.ppo\.group=1: must be at least 2 for --config\.algorithm=median"):
        derive(parsed("--config.algorithm=median", "--config.ppo.group=1", f"--plugins={toy}"), 1)


def test_what_cannot_be_used_is_one_line(toy, tmp_path):
    with pytest.raises(InputError, match=r"--plugins=.*missing.py: there is no file"):
        plugins.load(str(tmp_path / "missing.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(InputError, match=r"broken.py: ZeroDivisionError: division by zero"):
        plugins.load(str(broken))
    taken = tmp_path / "taken.py"
    taken.write_text(TOY.replace('"median"', '"ppo"'))
    with pytest.raises(InputError, match=r"taken.py: InputError: the algorithm 'ppo' is there already"):
        plugins.load(str(taken))
    plugins.load(str(toy))
    toy.write_text(TOY + "# another\n")
    with pytest.raises(InputError, match=r"toy.py has changed since this process ran it"):
        plugins.load(str(toy))


def test_a_run_uses_it_and_nobody_else_runs_it_unasked(toy, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    line = small_run.command(workdir, f"--plugins={toy}", algorithm="median")
    done = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert read_json(workdir / "config.json")["plugins"] == str(toy)
    with pytest.raises(InputError, match=r"config.json: its config names Python code, plugins=.* trust_code=True"):
        crs_jax.load(workdir)
    assert "median" not in ALGORITHMS
    monkeypatch.chdir(small_run.ROOT)
    run = crs_jax.load(workdir, trust_code=True)
    assert "median" in ALGORITHMS
    run.export(tmp_path / "shared")
    again = subprocess.run(
        [sys.executable, "-c", f"import crs_jax; print(crs_jax.load({str(tmp_path / 'shared')!r}).models)"],
        cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.stdout.strip() == "('ppo',)", again.stderr  # the folder is the policy alone: it needs no plugin
    toy.write_text(TOY.replace("median(", "mean("))
    other = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=600
    )
    assert other.returncode == 2
    assert "other plugins" in other.stderr or "another plugins" in other.stderr, other.stderr
