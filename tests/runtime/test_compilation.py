"""A step is compiled once or says why not; compiled programs are kept and found again."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from waits import HANGS

from crs_jax.runtime.compilation import Once, keep_programs
from crs_jax.runtime.sharding import AXES

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)


def test_the_same_step_runs_again_and_again(mesh):
    traced = []

    def add(state, batch):
        traced.append(None)
        return {"sum": state["sum"] + batch.sum()}

    step = Once("adding", add, mesh, donate=0)
    state = {"sum": jnp.float32(0)}
    for n in range(3):
        state = step(state, np.full(4, n, np.float32))
    assert float(state["sum"]) == 12
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (np.ones(5, np.float32), r"array 1 of its arguments was float32\[4\] and is now float32\[5\]"),
        (np.ones(4, np.int32), r"array 1 of its arguments was float32\[4\] and is now int32\[4\]"),
        ((np.ones(4, np.float32), np.ones(4, np.float32)), "with 2 arrays and now with 3"),
    ],
    ids=["shape", "type", "number"],
)
def test_another_program_is_refused_before_it_is_compiled(mesh, other, said):
    traced = []

    def add(state, batch):
        traced.append(None)
        return state + sum(a.sum() for a in jax.tree.leaves(batch))

    step = Once("adding", add, mesh)
    step(jnp.float32(0), np.ones(4, np.float32))
    with pytest.raises(RuntimeError, match=f"adding: .*{said}.*compiled a second time"):
        step(jnp.float32(0), other)
    assert len(traced) == 1


def test_another_layout_is_another_program():
    """Two simulated devices, in a process of its own; layouts that are written otherwise but alike are the same."""
    program = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from crs_jax.runtime.compilation import Once
from crs_jax.runtime.sharding import AXES
mesh = jax.make_mesh((2, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
def at(*spec):
    return jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec(*spec)))
step = Once("adding", lambda a: a.sum(), mesh)
for spec in ((), (None,), (None, None), ("fsdp",)):
    step(at(*spec))
try:
    step(at("data"))
except RuntimeError as error:
    print(error)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert "array 0 of its arguments was float32[4, 2]" in done.stdout
    assert "'data'" in done.stdout


def test_what_looks_alike_and_is_not(mesh):
    """The same arrays under another name, and a number of Python's for an array's."""
    step = Once("adding", lambda state, number: sum(state.values()) * number, mesh)
    step({"a": jnp.float32(1), "b": jnp.float32(2)}, jnp.float32(3))
    with pytest.raises(RuntimeError, match="another structure"):
        step({"a": jnp.float32(1), "c": jnp.float32(2)}, jnp.float32(3))
    with pytest.raises(RuntimeError, match="array 2 of its arguments was float32"):
        step({"a": jnp.float32(1), "b": jnp.float32(2)}, 3.0)


STAGES = """
import dataclasses, pathlib, sys
from tiny_task import make_task, tiny_config
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import make_mesh
from crs_jax.training.reward import run_reward
from crs_jax.training.sft import run_sft
folder = pathlib.Path(sys.argv[1])
settings = {"head__epochs": 1.0, "head__batch": 8, "sft__epochs": 0.5, "reward__epochs": 0.5, "mesh__fsdp": 2}
config = tiny_config(folder, **settings)
task = dataclasses.replace(make_task(folder, config), mesh=make_mesh(config))
assert task.mesh.size == 2
with MetricsWriter(folder, tensorboard=False) as writer:
    run_reward(task, writer, run_sft(task, writer))
"""


def test_the_stages_steps_are_compiled_once_on_two_devices(tmp_path):
    """Head, supervised and reward steps: what a step gives back lies as what it was given."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    path = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'training'}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    line = [sys.executable, "-c", STAGES, str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["stage"] for line in steps if line["step"] > 1} == {"head", "sft", "reward"}


PROGRAM = """
import jax, jax.numpy as jnp
from crs_jax.runtime.compilation import keep_programs
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
print(keep_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda a: (a @ a).sum())(jnp.ones((64, 64))).block_until_ready()
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def test_programs_are_kept_for_the_next_run(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**plain, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", PROGRAM]
    said = [
        subprocess.run(line, env=environment, capture_output=True, text=True, timeout=HANGS, check=True).stdout.split()
        for _ in range(2)
    ]
    folder = pathlib.Path(said[0][0])
    assert folder.parent == tmp_path / "crs_jax"
    assert list(folder.iterdir())
    assert int(said[0][1]) == 0
    assert int(said[1][1]) > 0


def test_a_folder_that_was_chosen_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert keep_programs() is None
