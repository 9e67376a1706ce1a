"""launch/Containerfile: its linter, and what its build would find, without a build.

No engine runs here. What it copies is copied as it would be, less what .dockerignore leaves out, and the program is
started in the copy.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pathspec
import pytest
from launch_fakes import HOSTILE, ROOT
from waits import HANGS

FILE = ROOT / "launch" / "Containerfile"
LINES = [line for line in re.sub(r"\\\n", " ", FILE.read_text()).splitlines() if line and not line.startswith("#")]
IGNORED = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines())


def words(instruction):
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_lint():
    linter = pathlib.Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(linter), str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", ["runs/a/metrics.json", ".venv/bin/python", ".git/config", "data/x", "tests/x.py"])
def test_only_sources_go_into_an_image(path):
    assert IGNORED.match_file(path)
    assert not IGNORED.match_file("crs_jax/rl/ppo.py")
    assert IGNORED.match_file("crs_jax/__pycache__/main.cpython-312.pyc")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The folder of the program, as the build leaves it."""
    folder = tmp_path_factory.mktemp("image")
    for *sources, target in words("COPY"):
        for source in sources:
            found = [path for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()]
            assert found, source
            for path in found:
                name = path.relative_to(ROOT)
                if IGNORED.match_file(str(name)):
                    continue
                inside = name.name if target.endswith("/") else path.relative_to(ROOT / source)
                where = folder / target / inside
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, where)
    return folder


def test_the_program_starts_from_what_is_copied(image):
    (entry,) = [json.loads(line.partition(" ")[2]) for line in LINES if line.startswith("ENTRYPOINT")]
    assert entry == ["python", "-m", "crs_jax.main"]
    for flags, said in ((["--help"], "Usage"), (["--config=configs/quickstart.py", "--helpfull"], r"\n  seed  ")):
        done = subprocess.run(
            [sys.executable, *entry[1:], *flags], cwd=image, env={**os.environ, "PYTHONPATH": str(image)},
            capture_output=True, text=True, timeout=HANGS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.search(said, done.stdout)
    assert not (image / "tests").exists()


def test_a_run_knows_the_commit_it_was_built_from(image):
    program = "from crs_jax.runtime.source_tree import commit; print(commit())"
    for said in ("1a2b3c4", ""):
        environment = {**os.environ, "PYTHONPATH": str(image), "CRS_JAX_COMMIT": said}
        assert (
            subprocess.check_output([sys.executable, "-c", program], cwd=image, env=environment, text=True)
            == said + "\n"
        )


def test_what_the_build_installs_from_is_there(image):
    project = tomllib.loads((image / "pyproject.toml").read_text())["project"]
    for name in (project["readme"], *project["license-files"], "launch/constraints.txt"):
        assert (image / name).is_file()
    before = LINES[: next(n for n, line in enumerate(LINES) if line == "COPY crs_jax crs_jax")]
    assert any("pip install --constraint launch/constraints.txt" in line for line in before)  # a layer of its own
    assert tuple(map(int, re.search(r"python:(\d+)\.(\d+)-slim", LINES[0]).groups())) >= (3, 11)


def installed(variant, folder):
    """What the build asks pip for first."""
    (install,) = [line.partition(" ")[2] for line in LINES if line.startswith("RUN") and "--editable" in line]
    script = f'mkdir() {{ :; }}; touch() {{ :; }}; pip() {{ printf "%s\\0" "${{!#}}"; }}; {install}'
    environment = {**os.environ, "VARIANT": variant}
    return subprocess.check_output(["bash", "-c", script], env=environment, cwd=folder, text=True).split("\0")[0]


@pytest.mark.parametrize(
    ("variant", "asked"),
    [*((f"cuda{value}", f".[cuda{value}]") for value in HOSTILE), *((f"cpu,{each}", f".[{each}]") for each in HOSTILE)],
)
def test_a_variant_is_one_argument_of_pip(variant, asked, tmp_path):
    assert installed(variant, tmp_path) == asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variant", "asked"),
    [("cpu", "."), ("cuda", ".[cuda]"), ("tpu,roberta", ".[tpu,roberta]"), ("cpu,roberta", ".[roberta]")],
)
def test_variants_are_extras(variant, asked, tmp_path):
    assert installed(variant, tmp_path) == asked
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\w+", asked)) <= extras.keys()


def test_no_root_and_a_folder_for_runs():
    assert words("USER") == [["1000"]]
    assert words("VOLUME") == [["/runs"]]
    assert LINES.index("USER 1000") > max(n for n, line in enumerate(LINES) if line.startswith("RUN"))
