"""Every command of the README's "From a laptop to a pod" does what it says, with stand-ins of what is not here."""

import itertools
import re
import subprocess

import pytest
from absl import flags
from launch_fakes import ROOT, Fakes
from waits import HANGS

from crs_jax.flags import parse

SECTION = (ROOT / "README.md").read_text().partition("## From a laptop to a pod\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```\n(.*?)```", SECTION, re.DOTALL)


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def run(fakes, text, **more):
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, env={**fakes.environment, **more},
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip


def test_tpu(fakes):
    done = run(fakes, block("tpu.sh"), DRY_RUN="yes")
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert sum(" create " in line and line.rstrip().endswith("--spot") for line in lines) == 1
    assert any("SHARE=10.0.0.2:/runs\\ EXTRAS=tpu" in line for line in lines)
    (ran,) = [line for line in lines if "tpu_worker.sh\\ run" in line]
    parse(["main", *ran.partition("tpu_worker.sh\\ run\\ ")[2].replace("\\", "").split()], flags.FlagValues())
    assert any(" delete " in line for line in lines)


def test_slurm(fakes):
    done = run(fakes, block("sbatch"))
    assert done.returncode == 0, done.stdout + done.stderr
    programs = [call["args"] for call in fakes.calls("python") if call["args"][:2] == ["-m", "crs_jax.main"]]
    assert len(programs) == 3  # --help behind the installation, and two processes
    command = parse(["main", *programs[1][2:]], flags.FlagValues())
    assert command.distributed == {}
    assert any(call["args"][-1].endswith("[cuda,roberta]") for call in fakes.calls("python"))


@pytest.mark.parametrize("word", ["kubectl", "docker run"])
def test_containers(fakes, word):
    done = run(fakes, block(word))
    assert done.returncode == 0, done.stderr
    declared = re.findall(r"^ARG (\w+)", (ROOT / "launch" / "Containerfile").read_text(), re.MULTILINE)
    built = set()
    for call in [*fakes.calls("docker"), *fakes.calls("kubectl")]:
        args = call["args"]
        options = dict(itertools.pairwise(args))
        if "-f" in args:
            assert (ROOT / options["-f"]).is_file()
        if args[0] == "build":
            built.add(options["-t"])
            assert options.get("--build-arg", f"{declared[0]}=").partition("=")[0] in declared
        if args[0] in ("push", "run"):
            assert built & set(args)
        if args[0] == "run":
            parse(["main", *args[args.index(options["--user"]) + 2 :]], flags.FlagValues())
    assert built


def test_no_command_is_left_out():
    """Each block is one of those above."""
    words = ("tpu.sh", "sbatch", "kubectl", "docker run")
    assert all(sum(word in text for word in words) == 1 for text in BLOCKS)
    assert len(BLOCKS) == len(words)
