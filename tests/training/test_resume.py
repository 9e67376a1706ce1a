"""A stage that was killed and goes on ends with the same bits as one that was not: weights, Adam, KL coefficients, data
position and keys all come back. Finished stages load bit for bit.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from crs_jax.runtime.checkpoint import Checkpoints
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.training import ppo_stage, sft
from crs_jax.training import reward as reward_stage
from crs_jax.training.ppo_stage import run_ppo
from crs_jax.training.reward import run_reward
from crs_jax.training.sft import run_sft

TIMED = ("seconds", "tokens_per_second")


class Killed(BaseException):
    """Stands for a lost machine: nothing in the program catches it."""


def kill_at(patch, module, name: str, call: int) -> None:
    function, met = getattr(module, name), []

    def killing(*arguments):
        met.append(1)
        if len(met) == call:
            raise Killed
        return function(*arguments)

    patch.setattr(module, name, killing)


def states_of(patch) -> list:
    """What the stage hands to its checkpoints, its arrays as host copies, without times."""
    saved = []
    save = Checkpoints.save

    def recording(self, given):
        copies = jax.tree.map(lambda a: np.array(a, copy=True), (given.state, given.result))
        saved.append(dataclasses.replace(given, state=copies[0], result=copies[1], seconds=0.0))
        save(self, given)

    patch.setattr(Checkpoints, "save", recording)
    return saved


def same_bits(found, expected) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def lines(workdir) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in TIMED}
        for line in read_log(workdir / "metrics.jsonl")
    ]


def run(stage: str, world, workdir, **changes):
    task = world.at(workdir, **changes)
    with MetricsWriter(workdir, tensorboard=False) as writer:
        if stage == "ppo":
            return run_ppo(task, writer, world.sft, world.reward)
        return run_sft(task, writer) if stage == "sft" else run_reward(task, writer, world.sft)


@pytest.mark.parametrize(
    ("stage", "module", "name", "call", "changes"),
    [
        ("sft", sft, "with_features", -3, {}),
        ("reward", reward_stage, "slot_labels", -2, {}),
        pytest.param("reward", reward_stage, "slot_labels", -4, {"reward__ensemble": 2}, marks=pytest.mark.slow),
        ("ppo", ppo_stage, "take", -1, {}),
    ],
    ids=["sft", "reward", "reward-ensemble", "ppo"],
)
def test_a_killed_stage_ends_as_if_it_had_not_been(world, faults, tmp_path, stage, module, name, call, changes):
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        function = getattr(module, name)
        patch.setattr(module, name, lambda *arguments: calls.append(1) or function(*arguments))
        whole = states_of(patch)
        result = run(stage, world, tmp_path / "whole", **changes)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, module, name, len(calls) + call)
        with pytest.raises(Killed):
            run(stage, world, tmp_path / "killed", **changes)
    with pytest.MonkeyPatch.context() as patch:
        rest = states_of(patch)
        resumed = run(stage, world, tmp_path / "killed", **changes)
    assert 0 < len(rest) < len(whole)  # it did not start over
    for saved, wanted in zip(rest, whole[-len(rest) :], strict=True):
        assert same_bits((saved.state, saved.result), (wanted.state, wanted.result)), saved.step
        bare = [dataclasses.replace(one, state=None, result=None) for one in (saved, wanted)]
        assert bare[0] == bare[1]
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    arrays = (resumed.policy[1], resumed.normaliser) if stage == "ppo" else resumed[1]
    assert same_bits(arrays, (result.policy[1], result.normaliser) if stage == "ppo" else result[1])
    if stage == "ppo":
        first, last = whole[0].state, whole[-1].state
        assert float(first.extra["act_kl"]) != float(last.extra["act_kl"])  # the adaptive coefficient moved meanwhile

    # Done: loaded bit for bit, and nothing runs.
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, module, "make_iteration" if stage == "ppo" else "make_step", 1)
        loaded = run(stage, world, tmp_path / "whole", **changes)
    arrays_loaded = (loaded.policy[1], loaded.normaliser) if stage == "ppo" else loaded[1]
    assert same_bits(arrays_loaded, arrays)
    types = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (arrays_loaded, arrays)]
    assert types[0] == types[1]


def test_reward_weights_may_change_after_the_reward_model_but_not_after_ppo(world, faults, tmp_path):
    run("reward", world, tmp_path)
    run("ppo", world, tmp_path, ppo__iterations=4)
    run("reward", world, tmp_path, reward__alpha=0.0, reward__beta=2.0, reward__gamma=-1.0)
    for name, value in (("alpha", 0.0), ("beta", 2.0), ("gamma", -1.0)):
        with pytest.raises(InputError, match=rf"checkpoints/ppo: made with config.reward.{name}=1.0, now {value}"):
            run("ppo", world, tmp_path, **{f"reward__{name}": value})
    with pytest.raises(InputError, match=r"checkpoints/reward: made with config.reward.learning_rate=0.0003, now 0.1"):
        run("reward", world, tmp_path, reward__learning_rate=0.1)


def test_another_sft_model_is_refused(world, faults, tmp_path):
    run("reward", world, tmp_path)
    graph, params, frozen = world.sft
    other = {**params, "words": params["words"].at[0, 0].add(1e-6)}
    task = world.at(tmp_path)
    with MetricsWriter(tmp_path, tensorboard=False) as writer, pytest.raises(InputError, match="another SFT model"):
        run_reward(task, writer, (graph, other, frozen))


def test_meta_is_json(world, faults, tmp_path):
    run("ppo", world, tmp_path)
    path = next((tmp_path / "checkpoints" / "ppo" / "4").rglob("meta/metadata"))
    meta = json.loads(path.read_text())
    assert meta["done"] is True
    assert meta["config"]["ppo.contexts"] == 8
    assert meta["config"]["reward.alpha"] == 1.0
