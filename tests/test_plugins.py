"""A file outside the package adds an algorithm and a corpus: flags choose them, and they go through a whole run."""

import json
import pathlib
import random
import subprocess
import sys

import pytest
import small_run
from absl import flags
from waits import HANGS

import crs_jax
from crs_jax import plugins
from crs_jax.config import derive
from crs_jax.data.corpora import CORPORA
from crs_jax.flags import parse
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import read_json
from crs_jax.tools.export.card import model_card

TOY = """
import json
import types

import jax.numpy as jnp

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.corpora import CORPORA, CorpusSource
from crs_jax.data.dialogue import MENTION, Dialogue, Turn
from crs_jax.data.records import Parsed
from crs_jax.rl.algorithms import ALGORITHMS, Algorithm


def beyond_the_median(score_CG, size_CG):
    return score_CG - jnp.median(score_CG, 1, keepdims=True)


ALGORITHMS["median"] = Algorithm(beyond_the_median)


def files(folder, data):
    return [folder / "talks.json"]


def parse(folder, data, scratch):
    found = json.loads((folder / "talks.json").read_text())
    talks = []
    for number, messages in enumerate(found["talks"]):
        turns = [Turn(role, text + MENTION * len(items), tuple(items)) for role, text, items in messages]
        talks.append(Dialogue(str(number), tuple(turns)))
    return Parsed(Catalogue(tuple(Item(name, name) for name in found["things"])), talks, [], [])


CORPORA["shop"] = CorpusSource("The corner shop", types.SimpleNamespace(files=files, parse=parse), "A toy.")
"""


def shop(folder: pathlib.Path) -> pathlib.Path:
    """A folder in a format of its own: 60 talks about 30 things."""
    rng, things = random.Random(0), [f"thing {chr(97 + n // 5)}{n % 5}" for n in range(30)]
    talks = []
    for number in range(60):
        wanted, offered, again = rng.sample(things, 3)
        talks.append([
            ("seeker", f"Talk {number}: I liked ", [wanted]), ("recommender", "Then take ", [offered]),
            ("seeker", rng.choice(["Great, thanks!", "No, that is awful."]), []), ("recommender", "Or ", [again]),
            ("seeker", rng.choice(["Lovely.", "I hate it."]), []),
        ])  # fmt: skip
    folder.mkdir()
    (folder / "talks.json").write_text(json.dumps({"things": things, "talks": talks}))
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The plugin; what it adds to this process is taken away again."""
    before = dict(ALGORITHMS), dict(CORPORA)
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    yield path
    plugins._loaded.clear()
    for registry, known in zip((ALGORITHMS, CORPORA), before, strict=True):
        for name in registry.keys() - known.keys():
            del registry[name]


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
    own = {"data.dataset": "shop", "data.dir": shop(tmp_path / "shop"), "algorithm": "median"}
    line = small_run.command(workdir, f"--plugins={toy}", **own)
    done = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert read_json(workdir / "config.json")["plugins"] == str(toy)
    assert "The corner shop" in (workdir / "report.html").read_text()
    assert read_json(workdir / "metrics.json")["data"]["items"] == 30
    with pytest.raises(InputError, match=r"config.json: its config names Python code, plugins=.* trust_code=True"):
        crs_jax.load(workdir)
    assert "median" not in ALGORITHMS
    monkeypatch.chdir(small_run.ROOT)
    run = crs_jax.load(workdir, trust_code=True)
    assert "median" in ALGORITHMS
    assert "A toy." in model_card(workdir, "ppo")
    assert run.recommend([("user", "I liked thing a1")], top=1)[0].title.startswith("thing")
    run.export(tmp_path / "shared")
    again = subprocess.run(
        [sys.executable, "-c", f"import crs_jax; print(crs_jax.load({str(tmp_path / 'shared')!r}).models)"],
        cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert again.stdout.strip() == "('ppo',)", again.stderr  # the folder is the policy alone: it needs no plugin
    toy.write_text(TOY.replace("jnp.median(", "jnp.mean("))
    other = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS
    )
    assert other.returncode == 2
    assert "made from another set of plugins than this run" in other.stderr, other.stderr
