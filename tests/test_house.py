"""The rules of the house: sizes of files, their names, and which room may import which."""

import ast
import math
import pathlib
import re

import budget
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "crs_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("main", "__init__", "chat", "sweep", "report", "export", "benchmark"),  # the commands
    ("tools",),
    ("pipeline",),
    ("prepare", "preflight"),
    ("training",),
    ("evaluation",),
    ("inputs",),
    ("rl", "config", "settings", "flags", "stored_config", "plugins"),
    ("models", "signals"),
    ("features",),
    ("data",),
    ("runtime",),
)
"""A file imports what stands in its own layer or a lower one. The method is everything below the tools."""

METHOD = {name for layer in LAYERS[2:] for name in layer}
COMMANDS = {"main", "chat", "chat/collect", "sweep", "report", "export", "benchmark", "benchmark/ahead"}
"""`python -m crs_jax.NAME`; each says its help and calls its tool."""


CORE = (
    "data/dialogue", "features/context", "models/policy", "rl/sampling", "rl/reward", "rl/algorithms",
    "training/batch", "training/ppo", "training/rollout", "training/score", "training/advantages", "training/update",
)  # fmt: skip
"""What a newcomer reads first, in this order; the README has the same list."""

BESIDE_THE_CORE = {
    "data/catalogue", "models/actor_critic", "models/decisions", "models/decoder", "models/transformer",
    "models/heads", "models/items", "models/layout", "models/likelihood", "models/match_features", "models/products",
    "models/query",
    "rl/all_acts", "rl/contexts", "rl/forward", "rl/frozen_models", "rl/groups", "rl/plackett_luce",
    "rl/ppo", "rl/scoring", "rl/turns", "signals/registry", "signals/relevance", "training/episodes",
    "training/ppo_metrics", "training/state", "training/trust", "training/turns",
}  # fmt: skip
"""What the core imports that is not the core nor `runtime/`. It should be empty: take away from it, add nothing."""


def layer(name: str) -> int:
    """Its number, from the top; what is not listed has none."""
    (found,) = [number for number, names in enumerate(LAYERS) if name in names]
    return found


def imports(path: pathlib.Path) -> set[str]:
    """Modules of crs_jax that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("crs_jax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_short_and_named(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most = 99 if path == PACKAGE / "main.py" else 350 if "tools" in path.parts else 300
    assert lines <= most
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_longer_than_80_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_imports_a_higher_layer(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = module.split(".")[1]
        assert other == own or layer(other) >= layer(own), f"{path.name} imports {module}, of a higher layer"


def test_commands_are_doors():
    """Beside the tools' own files only these import a tool."""
    importing = {path for path in FILES if any(module.startswith("crs_jax.tools.") for module in imports(path))}
    outside = {path.relative_to(PACKAGE).with_suffix("") for path in importing if "tools" not in path.parts}
    assert {str(name).removesuffix("/__main__") for name in outside} == {*COMMANDS, "__init__"}


def test_the_rule_catches_a_higher_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from crs_jax.training import ppo\n    import crs_jax.main\n")
    assert imports(bad) == {"crs_jax.training.ppo", "crs_jax.main"}
    assert layer("main") < layer("tools") < layer("training") < layer("models") < layer("runtime")
    assert "training" in METHOD
    assert "tools" not in METHOD


def test_ppo_maths_is_pure():
    """rl/ppo.py: functions of arrays and plain scalars, no input or output and no config object."""
    path = PACKAGE / "rl" / "ppo.py"
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in modules} <= {"__future__", "collections", "typing", "jax", "dataclasses"}


def test_top_level_holds_only_the_house():
    """`git ls-files` would be exact; a checkout without git has the same names besides ignored ones."""
    ignored = {"runs", "build", "__pycache__"}
    shown = {
        p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")
    } - ignored
    files = {"pyproject.toml", "README.md", "LICENSE", "SECURITY.md"}
    assert shown <= files | {"crs_jax", "configs", "docs", "launch", "tests", "colab"}


def test_the_core_is_short_and_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d+)\. `crs_jax/([\w/]+)\.py`: ", text, re.MULTILINE)
    assert listed == [(str(number), name) for number, name in enumerate(CORE, 1)]
    lines = sum(len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in CORE)
    assert len(CORE) <= 12
    assert lines <= 2500
    found = {module.removeprefix("crs_jax.").replace(".", "/") for name in CORE for module in modules(name)}
    assert {name for name in found if not name.startswith("runtime/")} - set(CORE) == BESIDE_THE_CORE


def modules(name: str) -> set[str]:
    """Files of crs_jax that a file imports."""
    found = imports(PACKAGE / f"{name}.py")
    found |= {module.rpartition(".")[0] for module in found}  # `from crs_jax.rl import ppo` or a name in a module
    return {module for module in found if (PACKAGE / f"{'/'.join(module.split('.')[1:])}.py").is_file()}


def test_the_documented_budget_is_the_sum():
    limit = sum(seconds for folder, seconds in budget.BUDGETS.items() if folder != "soak")
    text = pathlib.Path(budget.__file__).read_text(encoding="utf-8")
    assert f"add up to {limit:,}, just under {math.ceil(limit / 120)} minutes" in text
