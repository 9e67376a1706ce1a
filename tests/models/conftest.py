"""Makes `tiny_policy` importable by the tests of this folder and of tests/rl."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
