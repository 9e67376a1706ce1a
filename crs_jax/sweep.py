"""Many runs of one config: named cells of changed settings, each with several seeds, and one table at the end.

  python -m crs_jax.sweep --sweep=configs/sweeps/evidence.py --out=runs/evidence --config.data.dir=FOLDER

  --sweep               a Python file that names its `SWEEP`
  --out                 the folder of all its runs
  --jobs                how many runs go on at a time. Default: 1
  --seeds               such as 0,1. Default: those of the file
  --config.NAME         a setting of every run, such as --config.data.dir=FOLDER

Each run has a workdir of its own under `--out`; prepared data are
shared, and so are the models of the stages sft and reward between runs whose settings for them are the same, those of
other sweeps with the same `--out` too; a run all of whose settings are those of one that is done there is that one.
What is done is skipped, so that the same command goes on where it was stopped: Ctrl-C, SIGTERM and SIGHUP are passed
on to the runs, which save and end; `nohup` works. All settings are checked before the first run. At the end stand
`NAME.md`, `NAME.json` and `NAME.html` under the sweep's name: means over seeds with intervals, differences to the
reference cell with paired tests, and plots, which are also pictures of their own, `NAME-*.svg`.
"""

from __future__ import annotations

import sys

from crs_jax.runtime.program import in_utf8, leave, show_help

show_help(__name__, __doc__)

from crs_jax.tools.sweep.program import Plot, Sweep, main

__all__ = ["Plot", "Sweep"]

if __name__ == "__main__":
    in_utf8()
    leave(main(sys.argv[1:]))  # it has its own way with signals
