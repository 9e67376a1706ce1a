"""A pytest plugin: prints the seconds each folder of tests took, beside its budget on two cores.

What does not fit a budget goes to tests/soak, which runs only when named.
"""

import collections
import pathlib

BUDGETS = {
    "data": 80,
    "evaluation": 80,
    "features": 10,
    "launch": 150,
    "models": 190,
    "proof": 60,
    "rl": 160,
    "runtime": 200,
    "signals": 10,
    "tools": 530,
    "training": 900,
    "soak": 7200,
    ".": 590,  # the files directly under tests/, whole runs of the pipeline among them
}
"""Seconds by folder, of two workers side by side; all but soak add up to 2,960, just under 25 minutes."""

_seconds: dict[str, float] = collections.defaultdict(float)


def pytest_runtest_logreport(report):
    parts = pathlib.PurePosixPath(report.nodeid.partition("::")[0]).parts
    folder = parts[1] if len(parts) > 2 and parts[1] in BUDGETS else "."
    _seconds[folder] += report.duration


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("seconds by folder of tests, and budget")
    for folder, seconds in sorted(_seconds.items()):
        over = "  OVER BUDGET" if seconds > BUDGETS[folder] else ""
        terminalreporter.write_line(f"tests/{folder:<12} {seconds:7.1f} of {BUDGETS[folder]}{over}")
    total = sum(seconds for folder, seconds in _seconds.items() if folder != "soak")
    limit = sum(seconds for folder, seconds in BUDGETS.items() if folder != "soak")
    terminalreporter.write_line(f"{'all but soak':<18} {total:7.1f} of {limit}")
