"""Makes `report.html`: one page with everything a run found, for a colleague to read without the code.

  python -m crs_jax.report --workdir=runs/quickstart

  --workdir   a run that has ended

A run writes its report by itself; this writes it anew.
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.report.page import main

    leave(run_program(main))
