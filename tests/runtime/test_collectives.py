"""What devices hold and exchange in a PPO iteration, read from programs compiled for eight simulated ones.

The same is read from programs for TPUs in `test_tpu_compile.py`, whose compiler joins sums that this one leaves apart.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from waits import HANGS

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS, ITEMS = 2048, 1152  # rows of the tables, as `mesh_programs.py` has them
CONTENT = 426  # width of items' contents
FSDP, DATA, ALL = (1, 8, 1), (8, 1, 1), (2, 2, 2)  # data, fsdp, tensor
CONTENTS = 4 * (3 * ITEMS * CONTENT + ITEMS * 384)
"""Bytes that do not learn, whole on each device: contents of items in both models, and in the relevance."""


@pytest.fixture(scope="module")
def programs():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, str(ROOT / "tests" / "mesh_programs.py"), json.dumps([FSDP, DATA, ALL])]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-5000:]
    found = {}
    for text in done.stdout.splitlines():
        program = json.loads(text)
        for each in program["collectives"]:
            each["shape"] = [int(n) for n in each["result"].split("[")[1].rstrip("]").split(",") if n]
        found[tuple(program["mesh"])] = program
    return found


def received(program, *operations: str) -> float:
    """Bytes received, in sets of parameters."""
    of = sum(each["received"] for each in program["collectives"] if each["operation"] in operations)
    return of / (4 * program["parameters"])


@pytest.mark.parametrize("mesh", [FSDP, DATA, ALL], ids=str)
def test_no_logits_are_exchanged(programs, mesh):
    """Tables have words or items first, logits last; over the tensor axis each device has half of them."""
    found = programs[mesh]["collectives"]
    assert len(found) > 10
    for each in found:
        if len(each["shape"]) > 1:
            assert each["shape"][-1] not in (WORDS, WORDS // 2, ITEMS, ITEMS // 2), each


@pytest.mark.parametrize(("mesh", "parts", "over"), [(FSDP, 8, 1.08), (ALL, 4, 1.31), (DATA, 1, 1.01)], ids=str)
def test_what_a_device_holds_falls_as_their_number_rises(programs, mesh, parts, over):
    """The state, updated in place, and with it the reference and the reward model; data alone cuts nothing.

    Over tensor the kernels of the query and the positions, a quarter of so small a model, stay whole.
    """
    program = programs[mesh]
    one = 4 * program["parameters"]
    assert 3 * one / parts < program["alias"] < over * 3 * one / parts
    assert 5 * one / parts < program["argument"] < over * 5 * one / parts + 1.1 * CONTENTS


def test_over_data_gradients_alone_are_summed(programs):
    """Each parameter's once an update; this compiler sums those of the tables, and of the projection of hidden states
    onto contents, at each place where they are used: slates are one more.
    """
    program = programs[DATA]
    assert received(program, "all-gather", "all-to-all", "collective-permute") < 0.05
    ideal = 2 * 7 / 8 * program["updates"]
    tables = 4 * 128 * (WORDS + 4 * ITEMS + 3 * CONTENT) / (4 * program["parameters"])
    assert ideal < received(program, "all-reduce", "reduce-scatter") < 1.05 * ideal * (1 + tables)


def test_over_fsdp_parameters_are_gathered_for_each_pass_and_not_for_each_token(programs):
    """Passes: forward, again, and back in each update; prefill, actor, reference, rewards; of slates policy, reference
    and rewards; and two that measure how far the updates went.
    """
    program = programs[FSDP]
    passes = 3 * program["updates"] + 9
    gathered = received(program, "all-gather", "collective-permute")
    assert 7 / 8 * 2 < gathered < passes * 7 / 8
    words = [each for each in program["collectives"] if each["shape"] == [WORDS, 128]]
    summed = sum(each["runs"] for each in words if each["operation"] in ("all-reduce", "reduce-scatter"))
    assert summed == program["updates"]
