"""Three hundred PPO iterations hold no more memory at their end than after the first fifty, in the process and in JAX.

    launch/test.sh tests/soak/test_memory.py -s

About five minutes on two cores. `ITERATIONS=N` in the environment takes another number.
"""

import json
import os
import subprocess
import sys

import numpy as np
from small_run import ROOT, command, environment
from waits import HANGS

RUN = """
import sys
import jax
from crs_jax import main
from crs_jax.runtime import metrics

write = metrics.MetricsWriter.write

def noting(self, stage, step, values):
    write(self, stage, step, values)
    if stage == "ppo" and "reward" in values:
        arrays = jax.live_arrays()
        status = dict(line.split(":") for line in open("/proc/self/status"))
        own = sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap"))  # kB; no mapped file's pages
        print("memory", step, 1024 * own, len(arrays), sum(a.nbytes for a in arrays), file=sys.stderr)

metrics.MetricsWriter.write = noting
sys.exit(main.main(sys.argv))
"""


def test_memory_is_flat(tmp_path):
    count = int(os.environ.get("ITERATIONS", "300"))
    _, _, _, *flags = command(tmp_path, **{"ppo.iterations": count, "stages": "sft,reward,ppo"})
    line = [sys.executable, "-c", RUN, *flags]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("memory ")]
    step, own, arrays, held = np.array(rows, np.int64).T
    assert step[-1] == count
    assert len(step) == count
    early, late = slice(count // 6, count // 3), slice(-count // 6, None)
    found = {
        "MB of the process": [round(float(np.median(own[part])) / 1e6, 1) for part in (early, late)],
        "arrays": [int(np.median(arrays[part])) for part in (early, late)],
        "MB in arrays": [round(float(np.median(held[part])) / 1e6, 3) for part in (early, late)],
    }
    print(f"\n{count} iterations, medians of the second and the last sixth:", json.dumps(found))
    assert found["arrays"][1] <= found["arrays"][0]
    assert found["MB in arrays"][1] <= found["MB in arrays"][0]
    assert found["MB of the process"][1] <= 1.02 * found["MB of the process"][0]
