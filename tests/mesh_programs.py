"""Compiles the PPO iteration for simulated devices, and prints what each would hold and exchange; a process of its own.

  mesh_programs.py '[[1, 8, 1], [2, 2, 2]]'

Nothing is made or run: `crs_jax.tools.benchmark.ahead` lowers shapes. One line of JSON a mesh (data, fsdp, tensor).
"""

import json
import sys

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType

from crs_jax import flags as command_line
from crs_jax.runtime.sharding import AXES
from crs_jax.tools.benchmark.ahead import lower
from crs_jax.tools.benchmark.hlo import collectives

# No two of the sizes that tell arrays apart are equal, nor their halves: words 2048, items 1152, MLP 512.
SETTINGS = {
    "model.width": 128, "model.heads": 8, "model.positions": 640, "model.remat": True, "tokenizer.vocab_size": 2042,
    "ppo.contexts": 16, "ppo.group": 2, "ppo.minibatches": 2, "ppo.all_acts": 4,
}  # fmt: skip
ITEMS = 1100

if __name__ == "__main__":
    for shape in json.loads(sys.argv[1]):
        line = ["x", "--config=configs/benchmark.py:tiny", *(f"--config.{n}={v}" for n, v in SETTINGS.items())]
        config = command_line.parse(line, flags.FlagValues()).config
        devices = jax.devices()[: np.prod(shape)]
        mesh = jax.make_mesh(tuple(shape), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
        lowered, parameters = lower(config, mesh, ITEMS)
        program = lowered.compile()
        plan = program.memory_analysis()
        held = {name: getattr(plan, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
        found = [each._asdict() | {"received": each.received} for each in collectives(program.as_text())]
        facts = {"mesh": shape, "parameters": parameters, "updates": config.ppo.epochs * config.ppo.minibatches}
        print(json.dumps(facts | held | {"collectives": found}))
