"""Fifty kills at random moments, in every stage and in the middle of saves: each run ends as one that was not killed.

    launch/test.sh tests/soak/test_kills.py -s

About half an hour on two cores. `KILLS=N` and `SEED=N` in the environment take others.
"""

import collections
import os

from small_run import outcome, run, soak

LOG_ALL = {"log_every": 1, "save_minutes": 0.02, "ppo.iterations": 8, "sft.epochs": 2}


def test_every_kill_is_survived(tmp_path):
    kills = int(os.environ.get("KILLS", "50"))
    whole = run(tmp_path / "whole", **LOG_ALL)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    where = soak(tmp_path, outcome(tmp_path / "whole"), kills, int(os.environ.get("SEED", "0")), **LOG_ALL)
    print(f"\n{len(where)} of {kills} kills survived, with the same end:", dict(collections.Counter(where)))
    assert len(where) == kills
