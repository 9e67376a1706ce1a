"""Makes `tiny_policy` (tests/models) importable, and rlax without the tensorflow it would bring along."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))


@pytest.fixture(scope="session")
def rlax():
    """The module. Its tensorflow_probability imports tensorflow if it can, which must not meet torch in a process."""
    with pytest.MonkeyPatch.context() as patch:
        if "tensorflow" not in sys.modules:
            patch.setitem(sys.modules, "tensorflow", None)
        module = pytest.importorskip("rlax")
    return module
