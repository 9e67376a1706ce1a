"""One program, any mesh: rules for every large array, and the same PPO iteration on 1, 2, 4 and 8 devices and in two
processes, up to float reassociation (measured: 3e-6 of the largest entry of Adam's moments, 3e-6 in parameters).
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from waits import HANGS

from configs.common import get_config
from crs_jax.inputs.task import split_model
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.rl.reward import RewardModel
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.sharding import AXES, RULES, make_mesh, path_name, shardings, spec_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "training" / "mesh_worker.py"
ALONE = (1, 1, 1, 1)
MESHES = [(1, 4, 1, 1), (2, 2, 2, 1), (2, 1, 1, 2)]  # data, fsdp, tensor, processes
ONE_PROCESS = [shape for shape in (ALONE, *MESHES) if shape[3] == 1]
MOVES = [(a, b) for a in ONE_PROCESS for b in ONE_PROCESS if a != b]
LEARNING_RATE = 1e-3


def named(shape) -> str:
    return "x".join(map(str, shape))


def each(shapes):
    """Parameters of a test; two processes are slow, and tests/launch/test_slurm.py has them in every run."""
    marks = [pytest.mark.slow if shape[3] == 2 else () for shape in shapes]
    return [pytest.param(shape, id=named(shape), marks=mark) for shape, mark in zip(shapes, marks, strict=True)]


def start(arguments: list[str], devices: int) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), *arguments],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """(arrays, facts) of every mesh."""
    folder = tmp_path_factory.mktemp("meshes")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shapes = json.dumps([shape[:3] for shape in ONE_PROCESS])
    workers = [start([str(folder), shapes], 8)]
    if any("2x1x1x2" in item.nodeid for item in request.session.items):
        workers += [start([str(folder / "pair"), "[[2, 1, 1]]", f"localhost:{port}", str(n), "2"], 1) for n in range(2)]
    try:
        for worker in workers:
            said, _ = worker.communicate(timeout=HANGS)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
    found = {}
    for shape in [ALONE, *MESHES]:
        path = (folder / "pair" if shape[3] == 2 else folder) / "-".join(map(str, shape))
        if path.with_suffix(".npz").exists():
            with np.load(f"{path}.npz") as arrays:
                found[shape] = dict(arrays), json.loads(pathlib.Path(f"{path}.json").read_text())
    return found


def test_the_iteration_compared_is_not_trivial(results):
    arrays, _ = results[ALONE]
    metrics = {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith("2/3/")}
    assert metrics["kl/max"] > 0.1
    assert metrics["clip_fraction"] > 0
    assert 0 < metrics["step_kl/share"] <= 1
    assert metrics["items_per_reply"] > 0
    assert metrics["reply_length"] > 8
    assert arrays["2/2/act_kl"] != arrays["1/2/act_kl"]  # the adaptive coefficient moved
    kernel = "/0/policy/trunk/blocks/qkv_kernel"
    assert np.abs(arrays[f"2{kernel}"] - arrays[f"1{kernel}"]).max() > LEARNING_RATE


@pytest.mark.parametrize("shape", each(MESHES))
def test_iteration_equals_that_of_one_device(results, shape):
    expected, found = results[ALONE][0], results[shape][0]
    expected = {name: array for name, array in expected.items() if not name.startswith("from ")}
    assert expected.keys() == {name for name in found if not name.startswith("from ")}
    close(found, expected)


def close(found: dict, expected: dict) -> None:
    for name, array in expected.items():
        # Adam makes a step of a gradient that is zero but for rounding (key biases): within a tenth of a step.
        moment = "/mu/" in name or "/nu/" in name
        atol = 5e-4 * np.abs(array).max() if moment else 0.1 * LEARNING_RATE
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("shape", each([ALONE, *MESHES]))
def test_arrays_lie_by_the_rules_and_the_iteration_is_compiled_once(results, shape):
    facts = results[shape][1]
    assert facts["misplaced"] == {}
    assert facts["programs"][:2] == [1, 0]
    assert not any(facts["programs"][2:])
    _, fsdp, tensor, _ = shape
    assert facts["words_shard"] == facts["residual_shard"] == [512 // tensor, 32 // fsdp]


@pytest.mark.parametrize(("source", "shape"), MOVES, ids=named)
def test_a_run_goes_on_on_another_mesh(results, source, shape):
    """What one mesh saved after an iteration loads onto another bit for bit, and the next iteration is the same."""
    saved, (found, facts), prefix = results[source][0], results[shape], f"from {np.prod(source)}/"
    resumed = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}
    loaded = {name: array for name, array in resumed.items() if name.startswith("1/")}
    assert {name[2:] for name in loaded} == {name[2:] for name in saved if name.startswith(("2/0/", "2/1/", "2/2/"))}
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, saved[name], err_msg=name)
    after = {name: array for name, array in resumed.items() if name.startswith("2/")}
    assert after.keys() == {name for name in saved if name.startswith("2/")}
    close(after, {name: results[ALONE][0][name] for name in after})
    assert facts["digest"] == results[ALONE][1]["digest"]


def actor_and_reward():
    """Shapes of the trained and frozen arrays of an actor with a separate critic, and of a reward model."""
    layout = Layout(
        num_words=20, item_offset=26, num_items=10, act_items=2,
        pad=20, seeker=21, recommender=22, rec=23, say=24, end=25,
    )  # fmt: skip

    def arrays():
        policy, critic, predict_signals = (
            Policy(GPT2Config(2, 32, 4, 64), layout, np.ones((10, 8), np.float32), rngs=nnx.Rngs(params=n), pad_to=256)
            for n in range(3)
        )
        models = ActorCritic(policy, "separate", critic), RewardModel(predict_signals)
        return [split_model(model)[1:] for model in models]

    return jax.eval_shape(arrays)


def test_what_has_no_rule_is_small():
    """Every array but norms, biases of the residual stream and the scalar heads has a rule, and is cut by it."""
    mesh = AbstractMesh((2, 2, 2), AXES)
    whole = []
    for tree in jax.tree.leaves(actor_and_reward(), is_leaf=lambda tree: isinstance(tree, dict)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = path_name(path)
            if any(re.search(pattern, name) for pattern, _ in RULES):
                assert any(axis for axis in spec_of(name, leaf.shape, mesh)), f"{name} has a rule and is replicated"
            else:
                whole.append(name.rsplit("/", 1)[-1])
                assert leaf.size <= 2 * 32 * 3, name
    assert set(whole) <= {
        "ln1_scale", "ln1_bias", "ln2_scale", "ln2_bias", "out_bias", "down_bias", "final_scale", "final_bias",
        "kernel", "feature_kernel", "bias", "attention_kernel", "attention_bias", "attention_age", "role_scale", "gain",
        "gate", "named_gain", "asked_match", "named_match", "state_kernel", "say_bias", "end_bias", "own_bias",
    }  # fmt: skip


def test_moments_lie_as_their_parameters():
    mesh = AbstractMesh((1, 2, 2), AXES)
    (params, _), _ = actor_and_reward()
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    expected = jax.tree.map(lambda s: s.spec, shardings(params, mesh))
    for moments in (state[0].mu, state[0].nu):
        assert jax.tree.map(lambda s: s.spec, shardings(moments, mesh)) == expected


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = AbstractMesh((1, 4, 2), AXES)
    assert spec_of("policy/words", (256, 32), mesh) == PartitionSpec("tensor", "fsdp")
    assert spec_of("policy/words", (255, 30), mesh) == PartitionSpec(None, None)
    assert spec_of("policy/words", (255, 32), mesh) == PartitionSpec(None, "fsdp")
    assert spec_of("trunk/blocks/ln1_scale", (4, 32), mesh) == PartitionSpec()


def test_a_mesh_that_does_not_fit_is_refused():
    config = get_config()
    config.mesh.update({"data": 3, "fsdp": 5})
    with pytest.raises(InputError, match=r"data 3 x fsdp 5 x tensor 1 = 15, but there are \d+ device"):
        make_mesh(config)
