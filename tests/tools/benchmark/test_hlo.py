"""What a program sends between devices: a text by hand, and a real program of loops on eight simulated devices."""

import os
import pathlib
import subprocess
import sys

from waits import HANGS

from crs_jax.tools.benchmark.hlo import Collective, collectives

ROOT = pathlib.Path(__file__).resolve().parents[3]
TEXT = """
HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%layer (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %kernel = bf16[128,512]{1,0} all-gather(%shard), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %pair = (f32[16,4]{1,0}, f32[32]{0}, f32[32]{0}) all-reduce(%a, %b, %c), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%below (p: (s32[], f32[8,128])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%decode (p: (s32[])) -> (s32[]) {
  %inner = (s32[]) while(%q), condition=%below, body=%layer, backend_config={"known_trip_count":{"n":"24"}}
}

%early (p: (s32[])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%all-reduce-scatter.3.clone (whole: f32[64,1024]) -> f32[64,128] {
  %sum.1 = f32[64,1024]{1,0:T(8,128)} all-reduce(%whole), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %own = f32[64,128]{1,0:T(8,128)} dynamic-slice(%sum.1, %zero, %at), dynamic_slice_sizes={64,128}
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %loop = (s32[], f32[8,128]) while(%t), condition=%below, body=%layer, backend_config={"known_trip_count":{"n":"24"}}
  %replies = (s32[]) while(%u), condition=%early, body=%decode
  %moved = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=3
  %cut = f32[64,128]{1,0:T(8,128)} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.3.clone
  ROOT %out = f32[1024,64]{1,0} reduce-scatter(%g), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""


def test_a_text_by_hand():
    """The layers run 24 times by themselves and 24 times in each of 6 rounds of decoding."""
    found = collectives(TEXT, unknown_trips=6)
    assert found[0] == Collective("reduce-scatter", "f32[1024,64]", 8, 1, 1)
    assert set(found[1:]) == {
        Collective("all-gather", "bf16[128,512]", 4, 1, 24 * 7),
        Collective("all-reduce", "f32[16,4]", 2, 1, 24 * 7),
        Collective("all-reduce", "f32[32]", 2, 2, 2 * 24 * 7),
        Collective("collective-permute", "f32[2]", 0, 1, 1),
        Collective("reduce-scatter", "f32[64,128]", 8, 1, 1),
    }
    gathered = next(each for each in found if each.operation == "all-gather")
    assert gathered.bytes_each == 128 * 512 * 2
    assert gathered.shape == (128, 512)
    assert gathered.received == 24 * 7 * 128 * 512 * 2 * 3 / 4  # its own quarter it has
    assert found[0].received == 7 * 1024 * 64 * 4  # seven parts to add to its own


def test_groups_however_they_are_written():
    line = "%g = f32[4]{0} all-gather(%a), channel_id=1, replica_groups="
    for written, group in (
        ("[2,4]<=[8], dimensions={0}", 4), ("{{0,1},{2,3}}, dimensions={0}", 2), ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8), ("mesh['a'=8] {'a':(1)2}", 2),
    ):  # fmt: skip
        text = f"ENTRY %main (a: f32[4]) -> f32[4] {{\n  {line}{written}\n}}"
        assert [each.group for each in collectives(text)] == [group], written


def test_a_real_program():
    """A sum over eight devices in a loop of five, and a gather after it."""
    program = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from crs_jax.tools.benchmark.hlo import collectives
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
at = lambda *spec: NamedSharding(mesh, P(*spec))
def run(a, b):
    def step(total, _):
        product = jax.lax.with_sharding_constraint((a + total.mean()) @ b, at())
        return total + jnp.tanh(product + total), None
    total, _ = jax.lax.scan(step, jnp.zeros((16, 32)), None, length=5)
    return total, jax.lax.with_sharding_constraint(a * 2, at())
a = jax.device_put(jnp.ones((16, 64)), at(None, "data"))
b = jax.device_put(jnp.ones((64, 32)), at("data", None))
text = jax.jit(run).lower(a, b).compile().as_text()
print([tuple(each) for each in collectives(text)])
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    found = {each[0]: each[1:] for each in eval(done.stdout)}
    assert found["all-gather"] == ("f32[16,64]", 8, 1, 1)
    assert found["all-reduce"] == ("f32[16,32]", 8, 1, 5)
