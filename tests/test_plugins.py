"""Files outside the package add an algorithm, a signal, a corpus and a decoder; flags choose them for a whole run."""

import json
import pathlib
import random
import re
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
from crs_jax.flags import help_text, parse
from crs_jax.models.decoder import DECODERS
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import read_json
from crs_jax.signals.registry import SIGNALS
from crs_jax.tools.export.card import model_card

DECODER = small_run.ROOT / "tests" / "models" / "toy_decoder.py"
TOY = """
import json
import types

import jax.numpy as jnp
import numpy as np

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.corpora import CORPORA, CorpusSource
from crs_jax.data.dialogue import MENTION, Dialogue, Turn
from crs_jax.data.records import Parsed
from crs_jax.rl.algorithms import ALGORITHMS, Algorithm
from crs_jax.signals.registry import SIGNALS, Labeller, Signal


def beyond_the_median(score_CG, size_CG):
    return score_CG - jnp.median(score_CG, 1, keepdims=True)


ALGORITHMS["median"] = Algorithm(beyond_the_median)


def cheer(dialogues):
    labels = [np.full(len(dialogue.turns), np.nan, np.float32) for dialogue in dialogues]
    for label_T, dialogue in zip(labels, dialogues):
        for t, (now, after) in enumerate(zip(dialogue.turns, dialogue.turns[1:])):
            if now.role == "recommender":
                label_T[t] = "!" in after.text
    return labels


SIGNALS["cheer"] = Signal(lambda sources: Labeller(cheer), default=0.5)


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
    registries = (ALGORITHMS, SIGNALS, CORPORA, DECODERS)
    before = [dict(registry) for registry in registries]
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    yield path
    plugins._loaded.clear()
    for registry, known in zip(registries, before, strict=True):
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
        assert config.reward.weights.to_dict() == {"cheer": 0.5}
    assert parsed("--config.reward.weights.cheer=-2", f"--plugins={toy}").reward.weights.cheer == -2
    with pytest.raises(InputError, match=r"--config\.reward\.weights\.cheer=5000\.0: must lie between -1000 and 1000"):
        parsed("--config.reward.weights.cheer=5000", f"--plugins={toy}")
    listed = help_text(["main", "--helpfull", f"--plugins={toy}"], flags.FlagValues(), "")
    assert re.search(r"^  algorithm .*\(ppo, .*, median\)$", listed, re.MULTILINE)
    with pytest.raises(InputError, match=r"--config\.ppo\.group=1: must be at least 2 for --config\.algorithm=median"):
        derive(parsed("--config.algorithm=median", "--config.ppo.group=1", f"--plugins={toy}"), 1)


def test_a_config_file_names_it_too(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(small_run.ROOT)
    lines = ["from configs import quickstart", "def get_config():", "    c = quickstart.get_config()", "    c.unlock()"]
    for more, weight in (("", 0.5), ("    c.reward.weights.cheer = 2.0", 2.0)):
        (tmp_path / "own.py").write_text("\n".join([*lines, f"    c.plugins = {str(toy)!r}", more, "    return c"]))
        config = parse(["main", f"--config={tmp_path / 'own.py'}", "--config.seed=1"], flags.FlagValues()).config
        assert config.reward.weights.to_dict() == {"cheer": weight}


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
    own = {"data.dataset": "shop", "data.dir": shop(tmp_path / "shop"), "algorithm": "median", "model.decoder": "toy"}
    line = small_run.command(workdir, f"--plugins={toy},{DECODER}", **own)
    done = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert read_json(workdir / "config.json")["plugins"] == f"{toy},{DECODER}"
    assert "The corner shop" in (workdir / "report.html").read_text()
    metrics = read_json(workdir / "metrics.json")
    assert metrics["data"]["items"] == 30
    assert -1 <= metrics["reward_model"]["cheer"]["pearson"] <= 1
    assert metrics["rewards"]["ppo"]["cheer"]["low"] <= metrics["rewards"]["ppo"]["cheer"]["high"]
    assert read_json(workdir / "config.json")["reward"]["weights"] == {"cheer": 0.5}
    assert "Cheer" in (workdir / "report.html").read_text()
    with pytest.raises(InputError, match=r"config.json: its config names Python code, plugins=.* trust_code=True"):
        crs_jax.load(workdir)
    assert "median" not in ALGORITHMS
    assert "toy" not in DECODERS
    monkeypatch.chdir(small_run.ROOT)
    run = crs_jax.load(workdir, trust_code=True)
    assert "median" in ALGORITHMS
    foretold = run.score([("user", "I liked thing a1")], "Then take thing b2").signals
    assert list(foretold) == ["engagement", "relevance", "sentiment", "cheer"]
    assert foretold["cheer"] is not None
    card = model_card(workdir, "ppo")
    assert "A toy." in card
    assert "\n- toy\n" in card
    assert "AutoModelForCausalLM" not in card  # transformers has no such model
    talk = [("user", "I liked thing a1")]
    first = run.recommend(talk, top=1)[0]
    assert first.title.startswith("thing")
    run.export(tmp_path / "shared")
    with pytest.MonkeyPatch.context() as without:
        without.delitem(DECODERS, "toy")
        with pytest.raises(InputError, match=r"crs_jax.json: config.model.decoder='toy': must be one of gpt2"):
            crs_jax.load(tmp_path / "shared")
    read = f"run = crs_jax.load({str(tmp_path / 'shared')!r}); print(run.models, run.recommend({talk})[0].probability)"
    code = f"import sys; sys.path.append({str(DECODER.parent)!r}); import crs_jax, toy_decoder; {read}"
    again = subprocess.run(
        [sys.executable, "-c", code],
        cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    # The folder is the policy alone: of the plugins it needs the decoder's.
    assert again.stdout.strip() == f"('ppo',) {first.probability}", again.stderr
    toy.write_text(TOY.replace("jnp.median(", "jnp.mean("))
    other = subprocess.run(
        line, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=HANGS
    )
    assert other.returncode == 2
    assert "made from another set of plugins than this run" in other.stderr, other.stderr
