"""PPO of GPT-2 medium compiles for TPU v5e, eight chips, with nobody's TPU: what a chip holds, and what goes over the
wires. One update in every run of the tests; the whole iteration, which takes minutes, among the slow ones.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from waits import HANGS

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHIP = 16 * 2**30  # bytes of a v5e
VOCABULARY, CATALOGUE = 50304, 7040  # padded rows (tensor 1)
CONTEXTS, REPLIES = 32, 256


def compiled(*flags: str) -> dict:
    """What `crs_jax.tools.benchmark.ahead` says."""
    library = os.environ.get("TPU_LIBRARY_PATH") or str(pathlib.Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so")
    if not pathlib.Path(library).is_file():
        reason = f"no TPU compiler at {library}: launch/test.sh installs it, or name another in TPU_LIBRARY_PATH"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TPU_LIBRARY_PATH": library}
    line = [sys.executable, "-m", "crs_jax.benchmark.ahead", *flags]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["update", pytest.param("iteration", marks=pytest.mark.slow)])
def program(request):
    whole = request.param == "iteration"
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=8"]
    part = [] if whole else [f"--part={request.param}"]
    found = compiled("--config=configs/redial_ppo.py", "--topology=v5e:2x4", *mesh, *part)
    # Parameters and both moments; the iteration has the reference and the reward model besides.
    return {**found, **found["bytes"], "copies": 5 if whole else 3, "updates": found["updates"] if whole else 1}


def shape_of(collective: dict) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", collective["result"].split("[")[1])]


def test_a_chip_holds_it(program):
    """Parameters, both moments, reference and reward model are cut over fsdp; the state is updated in place."""
    used = program["argument"] + program["output"] - program["alias"] + program["temp"] + program["code"]
    assert used < CHIP / 4  # 3.0 GiB when last measured
    assert program["peak_bytes"] == used
    assert program["fits"]
    copies = program["copies"] * 4 * program["parameters"]
    assert program["parameters"] > 3.5e8
    assert copies / 8 < program["argument"] < 1.1 * copies / 8
    assert program["alias"] > 0.99 * 3 * 4 * program["parameters"] / 8


def test_no_logits_and_no_whole_batch_go_over_the_wires(program):
    """A chip computes the logits of its own replies, which have words or items last; tables, which have them first, and
    kernels are gathered where they are in use.
    """
    assert len(program["collectives"]) > 10
    for each in program["collectives"]:
        operation, result, shape = each["operation"], each["result"], shape_of(each)
        if len(shape) > 1:
            assert shape[-1] not in (VOCABULARY, CATALOGUE), (operation, result)
        if operation in ("all-gather", "all-reduce"):  # activations of all contexts, or of all replies
            assert not (len(shape) > 2 and shape[0] in (CONTEXTS, REPLIES) and np.prod(shape) > 2**20), (
                operation,
                result,
            )


def test_gradients_of_tables_are_summed_once_an_update(program):
    """Words are looked up and predicted, but their gradient goes over the wires once: in bfloat16 to all, or in float32
    to where each part is kept, which is as many bytes.
    """
    summed = [e for e in program["collectives"] if e["operation"] in ("reduce-scatter", "all-reduce")]
    of_words = sum(e["received"] for e in summed if VOCABULARY in shape_of(e))
    once = 7 / 8 * 4 * VOCABULARY * 1024
    assert 0.99 < of_words / (program["updates"] * once) < 1.01


def test_updates_gather_parameters_layer_by_layer(program):
    """Kernels of one layer, in each layer of each update, forward and back."""
    gathered = [(shape_of(e), e["runs"]) for e in program["collectives"] if e["operation"] == "all-gather"]
    kernels = [runs for shape, runs in gathered if shape in ([1024, 4096], [1, 1024, 4096])]
    assert kernels
    assert sum(kernels) > 24 * program["updates"]


@pytest.mark.parametrize("program", ["iteration"], indirect=True)
@pytest.mark.slow
def test_decoding_gathers_the_parameters_once(program):
    """What is received is that of passes over whole sequences, about one set of parameters each, and not 64 more."""
    passes = 3 * program["updates"] + 7  # forward, again, and back; prefill, actor, reference, rewards and acts
    set_bytes = 2 * program["parameters"]  # bfloat16
    assert program["received_bytes"]["all-gather"] < 1.3 * passes * set_bytes  # with 64 more: 3.7 times as much


@pytest.mark.slow
def test_an_update_takes_less_than_twice_what_is_trained():
    """Batch 64 x 256 on one chip: parameters, gradients and Adam's moments, and as much again for all the rest."""
    shape = ["--config.ppo.contexts=64", "--config.ppo.group=1", "--config.ppo.minibatches=1"]
    flags = ["--topology=v5e:2x2", "--chips=1", "--part=update", *shape, "--config.data.context_tokens=192"]
    found = compiled("--config=configs/benchmark.py:345m", *flags)
    assert found["dtype"] == "bfloat16"
    assert found["peak_bytes"] < 2 * 16 * found["parameters"]
