"""Large arrays are handed the memory that others gave back, without page faults; a process of its own for each case."""

import os
import platform
import subprocess
import sys

import pytest
from waits import HANGS

PROGRAM = """
import resource, sys
import numpy as np
from crs_jax.runtime.host_memory import keep_and_advise
print(keep_and_advise() if sys.argv[1] == "keep" else None)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = np.ones(2**24, np.float32)
    del array
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool, limit: str = "unlimited", **environment: str) -> tuple[str, list[int]]:
    """What `keep_and_advise` returned, and page faults of three arrays of 64 MiB, one after another."""
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    limited = ["bash", "-c", f'ulimit -d {limit} && exec "$0" "$@"']
    line = [*limited, sys.executable, "-c", PROGRAM, "keep" if keep else "leave"]
    done = subprocess.run(line, env=plain | environment, capture_output=True, text=True, timeout=HANGS, check=True)
    said, *counts = done.stdout.split()
    return said, list(map(int, counts))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is glibc's malloc alone")
def test_what_was_given_back_is_used_again():
    _, left = faults(keep=False)
    said, kept = faults(keep=True)
    assert said == "True"
    assert min(left) > 30  # huge pages for all, at least; 16,384 where the kernel gives 4 KiB at a time
    assert max(kept[1:]) < 10


def test_an_environment_that_tunes_malloc_has_its_way():
    assert faults(keep=True, MALLOC_ARENA_MAX="2")[0] == "False"


def test_a_process_that_may_not_have_so_much_goes_on_as_before():
    said, counts = faults(keep=True, limit="1048576")
    _, untouched = faults(keep=False, limit="1048576")
    assert said == "False"
    assert all(abs(a - b) < 100 for a, b in zip(counts, untouched, strict=True))
