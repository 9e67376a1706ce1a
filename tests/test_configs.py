"""Every config file in every variant: loads, validates, is locked, and says how to run it."""

import ast
import pathlib
import re

import pytest

from configs import common
from crs_jax import config as checks
from crs_jax.flags import describe, load_config
from crs_jax.runtime.errors import InputError
from crs_jax.settings import Group, Setting

ROOT = pathlib.Path(__file__).resolve().parents[1]
REAL = ("redial", "opendialkg", "inspired")
SOURCES = ["quickstart.py"] + [f"{name}_ppo.py{variant}" for name in REAL for variant in ("", ":scratch", ":tiny")]
SOURCES += ["redial_ppo.py:paper"]
SOURCES += [f"benchmark.py:{size}" for size in ("tiny", "scratch", "16m", "124m", "345m", "774m")]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("source", SOURCES)
def test_loads_validates_and_is_locked(source, tmp_path):
    config = load_config(f"configs/{source}")
    assert config.is_locked
    assert {name for name, _ in checks.fields(config)} == {name for name, _ in checks.fields(common.get_config())}
    if not source.startswith("quickstart"):
        config.data.dir = str(tmp_path)
    checks.validate(config)
    sizes = checks.derive(config, 1)
    assert sizes["replies"] == config.ppo.contexts * config.ppo.group


def test_no_config_file_is_left_out():
    files = {p.name for p in (ROOT / "configs").glob("*.py")} - {"__init__.py", "common.py", "variants.py"}
    assert files == {source.partition(":")[0] for source in SOURCES}


@pytest.mark.parametrize("name", REAL)
def test_variants(name):
    full, scratch, tiny = (load_config(f"configs/{name}_ppo.py{variant}") for variant in ("", ":scratch", ":tiny"))
    assert {c.data.dataset for c in (full, scratch, tiny)} == {name}
    # GPT-2 medium: 24 layers, 1,024 wide, 16 heads, 1,024 positions (Radford et al. 2019, table 2)
    model = full.model
    assert (model.layers, model.width, model.heads, model.positions) == (24, 1024, 16, 1024)
    assert full.tokenizer.kind == "gpt2"
    # of ReDial's contexts 99 % have at most 171 tokens, of its replies 33
    assert (full.data.context_tokens, full.data.reply_tokens, full.ppo.buckets) == (192, 48, 2)
    assert 0 < full.ppo.hr_floor < 1
    assert min(full.ppo.act_kl_target, full.ppo.word_kl_target) > 0
    for config in (scratch, tiny):  # nothing from a hub
        assert config.model.init == "scratch"
        assert config.tokenizer.kind == "bpe"
        assert config.signals.sentiment == "vader"
        assert config.encoder.path == ""
        assert config.data.hub == ""
        with pytest.raises(InputError, match=r"--config\.data\.dir"):
            checks.validate(config)
    assert scratch.tokenizer.vocab_size + 6 == 4096
    assert 0 < tiny.data.max_train_dialogues <= 300
    assert 0 < tiny.data.max_eval_dialogues <= 60
    assert scratch.data.max_train_dialogues == scratch.data.max_eval_dialogues == 0


@pytest.mark.parametrize("name", REAL)
def test_unknown_variant_lists_the_others(name):
    with pytest.raises(InputError, match=r"'medium'.*:scratch.*:tiny"):
        load_config(f"configs/{name}_ppo.py:medium")


def test_the_papers_setting():
    """Words alone in SFT, no evidence; PPO reads it and is paid by relevance and sentiment shift; else as scratch."""
    paper, scratch = (
        dict(checks.fields(load_config(f"configs/redial_ppo.py:{name}"))) for name in ("paper", "scratch")
    )
    assert {name: value for name, value in paper.items() if value != scratch[name]} == {
        "model.leave_out": ("text", "asked", "named", "near", "people"), "reward.alpha": 0.0, "ppo.evidence": "all",
        "ppo.recommending": True, "ppo.query_rate": 300.0, "ppo.contexts": 16, "ppo.slate_batches": 16,
        "ppo.all_acts": 128, "ppo.minibatches": 8,
        "ppo.act_kl": 0.5, "ppo.word_kl": 5.0, "ppo.validation_contexts": 512,
    }  # fmt: skip
    assert paper["ppo.iterations"] == 60
    with pytest.raises(InputError, match=r":scratch.*:tiny.*:paper"):
        load_config("configs/redial_ppo.py:medium")


@pytest.mark.parametrize("name", ["quickstart", *(f"{name}_ppo" for name in REAL)])
def test_docstring_gives_the_command(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"python -m crs_jax.main --config=configs/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")


def test_every_default_is_documented_in_help():
    lines = {line.split()[0]: line for line in describe(common.get_config()) if line.startswith("  ")}
    assert {name for name, _ in checks.fields(common.get_config())} <= lines.keys()
    for path, setting in common.settings().flat().items():
        assert setting.meaning, path
        assert setting.meaning in lines[path]
        assert setting.allowed in lines[path]
    walked = common.settings().walk()  # without plugins there are no weights of their signals
    groups = {path: member.meaning for path, member in walked if isinstance(member, Group) and member.members}
    assert all(meaning and meaning in lines[f"{path}:"] for path, meaning in groups.items())


def test_a_setting_is_declared_once_and_on_one_line():
    source = (ROOT / "configs" / "common.py").read_text()
    kinds = "|".join(kind.__name__ for kind in Setting.__subclasses__())
    names = re.findall(rf"^ +(\w+)=(?:{kinds})\(.+\),$", source, re.MULTILINE)
    assert names == [path.rpartition(".")[2] for path in common.settings().flat()]
