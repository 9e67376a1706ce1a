"""A command that saves when a signal reaches it, and a program of the test's own that runs such commands."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAVES = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    os.write(2, f"saved {number}\\n".encode())
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
os.write(1, b"begun\\n")
time.sleep(60)
"""


def start(program: str, *arguments: str, **settings) -> subprocess.Popen:
    """The program, in Python; its first argument is the command's code."""
    line = [sys.executable, "-c", program, SAVES, *arguments]
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **settings)  # fmt: skip
