"""No figure of validation or evaluation depends on how instances are batched."""

import jax
import numpy as np
import pytest
from flax import nnx

from crs_jax.data.dialogue import RECOMMENDER
from crs_jax.evaluation.stage import run_evaluate
from crs_jax.inputs.features import of_split
from crs_jax.inputs.labels import label
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.sharding import shard_batch
from crs_jax.signals.registry import SIGNALS
from crs_jax.training import loop, reward, sft
from crs_jax.training.act_head import head_validation
from crs_jax.training.counterfactual import Counterfactuals
from crs_jax.training.examples import fresh_instances
from crs_jax.training.held_out import held_out
from crs_jax.training.ppo_samples import Samples
from crs_jax.training.ppo_stage import Aligned, build
from crs_jax.training.ppo_validation import Validation
from crs_jax.training.reward import run_reward, split_holdout
from crs_jax.training.seeker import run_seeker
from crs_jax.training.sft import make_packer, packed_hidden

SIZES = {"evaluation__batch": 7, "sft__rows": 4}, {"evaluation__batch": 10, "sft__rows": 3}
NORMALISER = Normaliser(np.zeros(3, np.float32), np.full(3, 0.7, np.float32), np.float32(1.3))


def moved(params):
    return jax.tree.map(lambda a: a + 0.05 * np.sin(np.arange(a.size)).reshape(a.shape).astype(a.dtype), params)


class Writer:
    """Keeps the tables it is given."""

    def table(self, name, columns, rows):
        self.rows = [dict(zip(columns, row, strict=True)) for row in rows]

    def text(self, *_):
        pass

    histogram = text


def looked(run, task, world, monkeypatch):
    """Parameters near those that a supervised stage starts from, and what its validation says of them; nothing is
    trained.
    """
    found = []

    def look(stage, resumed, state, kept):
        params = moved(stage.candidate(state))
        found.append((params, stage.scores(params)))
        return kept

    monkeypatch.setattr(loop, "train", look)
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        run(task, writer, world.sft)
    return found[0]


def of_ppo(world, task):
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    validation, writer = Validation(task, graphs, frozen_models), Writer()
    found = validation(moved(world.sft[1]), NORMALISER)
    Samples(task, validation, world.sft[1], NORMALISER).write(writer, 3)
    return {**found, "replies": validation.last._asdict(), "shown": dict(enumerate(writer.rows))}


def of_evaluation(world, task):
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    policy = (world.sft[0], moved(world.sft[1]), world.sft[2])
    aligned = Aligned(policy, graphs, frozen_models, NORMALISER)
    found, lines = run_evaluate(task, {"sft": world.sft, "ppo": policy}, aligned)
    return {**found, "samples": dict(enumerate(lines))}


PARTS = {
    "sft": lambda world, task, _: sft.Validation(task, world.sft[0])(*world.sft[1:]),
    "act head": lambda world, task, _: head_validation(task, *world.sft),
    "reward": lambda world, task, patch: looked(run_reward, task, world, patch)[1],
    "reward model": lambda world, task, _: held_out(task, world.reward)[0],
    "seeker": lambda world, task, patch: looked(run_seeker, task, world, patch)[1],
    "ppo": lambda world, task, _: of_ppo(world, task),
    "evaluation": lambda world, task, _: of_evaluation(world, task),
}


def same(a, b) -> bool:
    if isinstance(a, (str, bool, type(None))):
        return a == b
    return np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=2e-6, equal_nan=True)


def leaves(tree):
    """By dotted name; lists are taken apart too."""
    if isinstance(tree, dict):
        return {f"{name}.{rest}": leaf for name, value in tree.items() for rest, leaf in leaves(value).items()}
    if isinstance(tree, list):
        return leaves(dict(enumerate(tree)))
    return {"": tree}


@pytest.mark.parametrize("part", PARTS)
def test_two_sizes_give_the_same_figures(world, tmp_path, monkeypatch, part):
    """Neither size divides the instances, so that a last batch is filled up."""
    figures = []
    for number, sizes in enumerate(SIZES):
        task = world.at(tmp_path / str(number), evaluation__samples=3, evaluation__optimum_acts=8, **sizes)
        found = task.replies("test"), task.replies("validation"), fresh_instances(task, "validation")
        assert all(len(instances) % sizes["evaluation__batch"] for instances in found), [*map(len, found)]
        figures.append(leaves(PARTS[part](world, task, monkeypatch)))
    one, other = figures
    changed = {name for name in one.keys() & other.keys() if not same(one[name], other[name])}
    assert one
    assert sorted(changed | one.keys() ^ other.keys()) == []


def test_the_held_out_loss_is_a_mean_over_labels(world, tmp_path, monkeypatch):
    """Against a loop over the held-out replies; copies against one batch of all. Four rows a batch, the last padded."""
    task = world.at(tmp_path, reward__holdout=0.5, reward__counterfactual=0.7)
    params, found = looked(run_reward, task, world, monkeypatch)
    graph, _, frozen = world.reward
    model: RewardModel = nnx.merge(graph, params, frozen)
    signal_DTS, split_features, held = label(task, "train").signal_DTS, of_split(task, "train"), split_holdout(task)[1]
    rows, t = make_packer(task, "train", held).pack(), task.tokenizer
    assert len(rows["tokens_RT"]) % task.config.sft.rows
    window = task.config.data.window
    hidden_RTD = np.asarray(packed_hidden(model.policy, model.policy.tables(), rows, window, None))
    errors = {(place, s): [] for place in (t.say, t.end) for s in range(len(SIGNALS))}
    for number, d in enumerate(held):
        for turn in [n for n, said in enumerate(task.corpus.train[d].turns) if said.role == RECOMMENDER]:
            here_RT = (rows["dialogue_RT"] == number) & (rows["utterance_RT"] == turn) & (rows["segment_RT"] > 0)
            for place in (t.say, t.end):
                ((r, at),) = np.argwhere(here_RT & (rows["tokens_RT"] == place))
                read_S = np.asarray(model.heads(hidden_RTD[r, at], split_features.matches(d, turn)))
                for s in np.flatnonzero(np.isfinite(signal_DTS[d, turn])):
                    errors[place, s].append((read_S[s] - signal_DTS[d, turn, s]) ** 2)
    counts = [len(values) for values in errors.values()]
    assert max(counts) > 1.5 * min(counts) > 3
    expected = [np.mean([np.mean(errors[place, s]) for place in (t.say, t.end)]) for s in range(len(SIGNALS))]
    assert [found[f"{name}_loss"] for name in SIGNALS] == pytest.approx(expected, rel=1e-5)
    others = Counterfactuals(task, held, signal_DTS, split_features).draw(len(rows["tokens_RT"]), reward.HELD)
    labelled = {**reward.slot_labels(task, rows, held, signal_DTS, split_features), **others}
    copies = reward.reward_loss(model, shard_batch(labelled, task.mesh), window, None)[1]
    for name in ("counterfactual_loss", "real_over_other"):
        assert found[name] == pytest.approx(float(copies[name]), rel=1e-4, abs=1e-6)
    assert found["loss"] == pytest.approx(np.mean(expected) + 0.7 * found["counterfactual_loss"], rel=1e-5)
