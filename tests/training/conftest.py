"""Makes the helpers of this folder importable, and shares one small task with its first models."""

import dataclasses
import pathlib
import sys
from typing import Any

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.with_name("models"))]


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory):
    """Where the simulated corpus of all tiny tasks is prepared once."""
    return tmp_path_factory.mktemp("corpus")


@dataclasses.dataclass(frozen=True)
class World:
    """A task, its SFT policy and its reward model, untrained."""

    task: Any
    sft: Any
    reward: Any

    def at(self, workdir: pathlib.Path, **changes: Any) -> Any:
        """The task in another workdir, its config changed (`ppo__checks=False`)."""
        from tiny_task import change

        return dataclasses.replace(self.task, workdir=workdir, config=change(self.task.config, **changes))


@pytest.fixture(scope="session")
def world(tmp_path_factory, corpus_cache):
    from tiny_task import fresh_models, make_task, tiny_config

    task = make_task(tmp_path_factory.mktemp("world"), tiny_config(corpus_cache))
    return World(task, *fresh_models(task))


@pytest.fixture(scope="session")
def _compiled():
    from faults import Faults

    return Faults(), {}


@pytest.fixture
def faults(_compiled, monkeypatch):
    """PPO with faults that can be switched on; all are off at the start of a test."""
    from faults import install

    found, made = _compiled
    found.reset()
    install(monkeypatch, found, made)
    return found
