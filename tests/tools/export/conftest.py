"""One finished run as exported folders, for all tests of this room."""

import pathlib
import shutil

import pytest

import crs_jax
from crs_jax.tools.export import program as export


@pytest.fixture(scope="session")
def run(finished_run) -> crs_jax.Run:
    return crs_jax.load(finished_run)


@pytest.fixture(scope="session")
def shared(run, finished_run, tmp_path_factory) -> dict[str, pathlib.Path]:
    """Folders by model: ppo by the program, sft by the API."""
    at = tmp_path_factory.mktemp("shared")
    export.main([f"--workdir={finished_run}", f"--out={at / 'deep' / 'ppo'}"])
    run.using("sft").export(at / "sft")
    return {"ppo": at / "deep" / "ppo", "sft": at / "sft"}


@pytest.fixture
def copy(shared, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(shared["ppo"], tmp_path / "copy"))
