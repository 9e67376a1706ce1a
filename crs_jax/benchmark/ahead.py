"""Compiles the fused PPO iteration for TPUs that nobody has at hand: what a chip holds, and what goes over the wires.

  python -m crs_jax.benchmark.ahead --config=configs/benchmark.py:345m --topology=v5e:2x4 --config.mesh.fsdp=8

  python -m crs_jax.benchmark.ahead --config=configs/benchmark.py:345m --topology=v5e:2x2 --chips=1 --part=update \
    --config.ppo.contexts=64 --config.ppo.group=1 --config.ppo.minibatches=1

Everything is a shape: no array of the model's size is ever made, and no TPU is needed, only its compiler: the package
libtpu, or the library that TPU_LIBRARY_PATH names. Flags:

  --config      as of a run; its mesh must have as many devices as there are chips
  --topology    KIND:SHAPE of the slice, v5e:2x4 or v5p:2x2x2
  --chips       the first so many of it; default all
  --part        iteration, or update: one minibatch of it
  --items       of the catalogue; default ReDial's 6924
  --out         FILE.json; it is printed in any case

Prints one line of JSON: bytes a chip needs, whether it has them, parameters, and each exchange between chips with the
number of times an iteration carries it out.
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.benchmark.ahead import main

    leave(run_program(main))
