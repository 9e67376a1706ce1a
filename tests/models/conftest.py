"""Makes `tiny_policy` importable by the tests of this folder and of tests/rl; the toy decoder for both."""

import pathlib
import sys

import pytest

from crs_jax.models.decoder import DECODERS
from crs_jax.runtime.python_file import import_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def toy_module():
    """What the file of the toy decoder defines; it is not registered."""
    module = import_file(HERE / "toy_decoder.py", "toy")
    module.ENTRY = DECODERS.pop("toy")
    return module


@pytest.fixture
def toy(toy_module, monkeypatch):
    """The same, registered."""
    monkeypatch.setitem(DECODERS, "toy", toy_module.ENTRY)
    return toy_module
