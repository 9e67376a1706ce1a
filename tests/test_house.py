"""The rules of the house: sizes of files, their names, and which room may import which."""

import ast
import math
import pathlib

import budget
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "crs_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {
    "main": 5,
    "pipeline": 4,
    "prepare": 4,
    "api": 4,
    "loading": 4,
    "sharing": 4,
    "__init__": 4,
    "training": 3,
    "evaluation": 3,
    "rl": 2,
    "models": 1,
    "data": 1,
    "signals": 1,
}
"""main -> pipeline -> training/evaluation -> rl -> models/data/signals: a room imports its own height or lower.

The Python API stands beside the pipeline: it trains by it, and does with a finished run what the evaluation does;
`sharing/` writes a loaded run as a folder of its own and reads it; `crs_jax/__init__.py` names what the API has.

What is not listed (errors, config, metrics, sharding, ...) serves them all: any room may import it, and it may import
no room above models/data/signals, unless it is a program of its own.
"""
PROGRAMS = (
    "chat",
    "export",
    "benchmark",
    "sweep",
)  # run by `python -m`, imported by nobody; they may import what the pipeline may


def room(module: str) -> str:
    return module.split(".")[1]


def height_as_importer(name: str) -> int:
    return ROOMS["pipeline"] if name in PROGRAMS else ROOMS.get(name, ROOMS["models"])


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
    assert lines <= (99 if path.name == "main.py" and path.parent == PACKAGE else 350)
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_imports_a_higher_one(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = room(module)
        if other == own:
            continue
        assert other not in (*PROGRAMS, "main"), f"{path.name} imports {module}"
        if own in ROOMS or own in PROGRAMS or other in ROOMS:
            limit = height_as_importer(own)
            assert ROOMS.get(other, 0) <= limit, f"{path.name} ({own}) imports {module}, a higher room"


def test_the_rule_catches_a_higher_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from crs_jax.training import ppo\n    import crs_jax.main\n")
    assert imports(bad) == {"crs_jax.training.ppo", "crs_jax.main"}
    assert ROOMS["training"] > height_as_importer("models")
    assert ROOMS["training"] > height_as_importer("metrics")
    assert ROOMS["training"] <= height_as_importer("pipeline")


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


def test_the_documented_budget_is_the_sum():
    limit = sum(seconds for folder, seconds in budget.BUDGETS.items() if folder != "soak")
    text = pathlib.Path(budget.__file__).read_text(encoding="utf-8")
    assert f"add up to {limit:,}, just under {math.ceil(limit / 120)} minutes" in text
