"""The NaN guard of each stage: nothing is harmed, the run stops and says where, and leaves state and batch behind."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from faults import at

from crs_jax.config import slate_contexts
from crs_jax.inputs.contexts import contexts_at
from crs_jax.rl.contexts import take
from crs_jax.runtime.json_files import read_json
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.training import reward, sft
from crs_jax.training.batches import chosen
from crs_jax.training.halt import TrainingHaltedError
from crs_jax.training.ppo_stage import contexts_of, run_ppo
from crs_jax.training.reward import run_reward
from crs_jax.training.sft import run_sft

UPDATES = 4  # of a PPO iteration: 2 epochs x 2 minibatches


def stored(folder) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


def assert_same_bits(found, expected) -> None:
    flat = [jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected)]
    assert [path for path, _ in flat[0]] == [path for path, _ in flat[1]]
    for (path, a), (_, b) in zip(*flat, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


def updates_made(state: dict) -> int:
    return int(state["opt_state"][1]["count"])


def align(world, workdir, **changes):
    """Twelve iterations, saved at each second; the metrics of an odd one are read after the next has started."""
    task = world.at(workdir, ppo__iterations=12, **changes)
    with MetricsWriter(workdir, tensorboard=False) as writer:
        run_ppo(task, writer, world.sft, world.reward)


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        ("reward", {2}, "in the gradient|advantage|loss"),
        ("loss", {2 * UPDATES}, "loss"),
        ("gradient", {2 * UPDATES}, "grad_norm"),
    ],
)
def test_ppo_keeps_the_state_before_the_bad_iteration(world, faults, tmp_path, fault, calls, said):
    setattr(faults, fault, at(calls))
    with pytest.raises(TrainingHaltedError, match=rf"ppo: step 3 met a NaN or an infinity \(.*({said}).*halted/ppo-3"):
        align(world, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "ppo").glob("[0-9]*")) == ["2"]
    left, before = (
        stored(tmp_path / "halted" / "ppo-3" / "state"),
        stored(tmp_path / "checkpoints" / "ppo" / "2" / "state"),
    )
    assert left.pop("halted")
    assert not before.pop("halted")
    # Iteration 4 ran before the metrics of 3 were read, on healthy numbers: it too changed nothing but its own count.
    assert left.pop("step") == 4
    assert before.pop("step") == 2
    assert_same_bits(left, before)
    assert updates_made(left) == 2 * UPDATES

    task = world.at(tmp_path)
    where = contexts_of(task)
    batch = take(
        contexts_at(task, "train", where), chosen(task.config.seed, 2, len(where), slate_contexts(task.config))
    )
    with np.load(tmp_path / "halted" / "ppo-3" / "batch.npz") as arrays:
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
        assert_same_bits(dict(arrays), named)
    assert read_json(tmp_path / "halted" / "ppo-3" / "metrics.json")["halted"] == 1


def test_ppo_keeps_the_updates_before_a_bad_minibatch(world, faults, tmp_path):
    faults.loss = at({2 * UPDATES + 2})
    with pytest.raises(TrainingHaltedError, match="ppo: step 3"):
        align(world, tmp_path)
    left = stored(tmp_path / "halted" / "ppo-3" / "state")
    assert updates_made(left) == 2 * UPDATES + 2
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(left))


@pytest.mark.slow
def test_ppo_goes_on_from_the_last_checkpoint(world, faults, tmp_path):
    faults.reward = at({2})
    with pytest.raises(TrainingHaltedError):
        align(world, tmp_path)
    align(world, tmp_path)
    assert not stored(tmp_path / "checkpoints" / "ppo" / "12" / "state")["halted"]


def test_a_reward_model_that_says_nan_stops_ppo(world, faults, tmp_path):
    """A signal that is NaN where one exists would else count as missing, and the run go on without it."""
    graph, params, frozen = world.reward
    heads = {**params["heads"], "bias": params["heads"]["bias"].at[2].set(np.nan)}
    task = world.at(tmp_path)
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(TrainingHaltedError, match="ppo: step 1"),
    ):
        run_ppo(task, writer, world.sft, (graph, {**params, "heads": heads}, frozen))


def poison(monkeypatch, module, name: str, array: str, call: int) -> None:
    """Puts a NaN into one array of what `module.name` returns at the given call."""
    made, met = getattr(module, name), []

    def poisoned(*arguments):
        batch = made(*arguments)
        met.append(1)
        if len(met) == call:
            if "/" in array:
                name, field = array.split("/")
                batch[name] = batch[name]._replace(**{field: np.full_like(getattr(batch[name], field), np.nan)})
            else:
                batch[array] = np.full_like(batch[array], np.nan)
        return batch

    monkeypatch.setattr(module, name, poisoned)


def record(monkeypatch, module) -> list:
    """Host copies of the state after each step of the stage."""
    make, seen = module.make_step, []

    def recording(*arguments):
        step = make(*arguments)

        def run(*inputs):
            out = step(*inputs)
            seen.append(jax.tree.map(lambda a: np.array(a, copy=True), out[0]))
            return out

        return run

    monkeypatch.setattr(module, "make_step", recording)
    return seen


@pytest.mark.parametrize(
    ("stage", "module", "maker", "array", "before"),
    [("sft", sft, "with_features", "features/text", 0), ("reward", reward, "slot_labels", "end_features_RWF", 1)],
)
def test_a_bad_batch_stops_sft_and_reward(world, tmp_path, monkeypatch, stage, module, maker, array, before):
    """The third; `before` batches are made first, of held-out rows."""
    task = world.at(tmp_path)
    poison(monkeypatch, module, maker, array, call=before + 3)
    states = record(monkeypatch, module)
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(
            TrainingHaltedError, match=rf"{stage}: step 3 met a NaN or an infinity \(.*loss.*--config.{stage}.lear"
        ),
    ):
        run_sft(task, writer) if stage == "sft" else run_reward(task, writer, world.sft)
    folder = tmp_path / "halted" / f"{stage}-3"
    left = stored(folder / "state")
    assert left["halted"]
    assert [bool(state.halted) for state in states] == [False, False, True, True]
    for state in states[2:]:  # the bad step, and the one under way when its metrics were read
        assert_same_bits((state.params, state.opt_state), (states[1].params, states[1].opt_state))
    assert_same_bits(left["params"], states[1].params)
    assert_same_bits(jax.tree.leaves(left["opt_state"]), jax.tree.leaves(states[1].opt_state))
    with np.load(folder / "batch.npz") as batch:
        assert np.isnan(batch[array]).all()
        assert batch["tokens_RT"].shape == (task.config.sft.rows, task.config.sft.row_tokens)
    found = read_json(folder / "metrics.json")
    assert found["loss"] is None
    assert found["halted"] == 1
