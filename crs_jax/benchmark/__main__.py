"""Measures how fast the program is, and how fast torch does the same work in the same run.

  python -m crs_jax.benchmark                                   # the plan for this machine
  python -m crs_jax.benchmark --small                           # a short form, for CI
  python -m crs_jax.benchmark --sizes=16m,345m --parts=rollout,update,torch --rows=64x1,32x8 --lengths=192+64
  python -m crs_jax.benchmark --cells="rollout:345m:256x1:384+64 update:345m:64x1:192+64:model.remat=false"

Of rollout, scoring, update, whole iteration and supervised step: tokens a second, utilisation of the measured peaks,
compile time, memory; shares of an iteration; ratios to torch where torch and transformers are installed. Flags:

  --sizes, --parts, --rows, --lengths   choose cells: all combinations (rows are contexts x replies to each)
  --cells       cells one by one (`benchmark/plan.py` says how they are written)
  --plan        small, cpu or gpu; --small is --plan=small
  --config      config file whose variants are the sizes; --config.NAME=VALUE changes all cells
  --out         FILE.json, or a folder for DEVICE.json; the picture comes beside it. Default: runs/benchmark
  --budget      seconds after which no cell is begun
  --seconds     for which a program is timed again and again (at least three times)
  --threads     of the CPU, on both sides
  --same-memory true: torch's side too keeps its memory between steps on a CPU, as this program does (host_memory.py)
  --commit      of what is measured, where there is no git

The record is written after each cell.
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.benchmark.program import main

    leave(run_program(main))
