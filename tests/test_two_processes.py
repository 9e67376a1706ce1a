"""Two processes on one machine are one run: the same as that of one process, and when one dies the other ends too.

The small form, supervised learning alone, is in tests/launch/test_slurm.py.
"""

import pytest
from small_run import outcome, run
from two_processes import assert_close, ended, left_alone, pair

pytestmark = pytest.mark.slow
SETTINGS = {"log_every": 1, "ppo.iterations": 4}


def test_two_processes_are_one_run(tmp_path):
    said = ended(pair(tmp_path / "two", **SETTINGS))
    assert "done in" in said[0]
    assert "PPO" not in said[1]  # only the first speaks
    alone = run(tmp_path / "one", **SETTINGS)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    found, expected = (outcome(tmp_path / name) for name in ("two", "one"))
    assert_close(found["log"], expected["log"])
    for row in ("popularity", "copy", "similarity", "cooccurrence", "mix"):
        assert found["metrics"]["ranking"][row] == expected["metrics"]["ranking"][row]
    assert found["metrics"].keys() == expected["metrics"].keys()


def test_the_death_of_one_ends_the_other_and_the_run_goes_on(tmp_path):
    left_alone(pair(tmp_path, **SETTINGS), tmp_path, "ppo")
    assert "sft: done before" in ended(pair(tmp_path, **SETTINGS))[0]
