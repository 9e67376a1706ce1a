"""Makes `tiny_policy` (tests/models) importable, and rlax without the tensorflow it would bring along."""

import importlib
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))


@pytest.fixture(scope="session")
def rlax():
    """The module. Its tensorflow_probability imports tensorflow if it can, which must not meet torch in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", None)  # for the while, also where another test has loaded it
        return importlib.import_module("rlax")
