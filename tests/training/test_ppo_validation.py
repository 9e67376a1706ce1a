"""PPO's policy on validation contexts: hits against plain ranks, SFT's rewards at KL 0, words, and the floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from crs_jax.evaluation.optimum import optimum
from crs_jax.evaluation.policies import generate, judge_replies, ranking_scores
from crs_jax.evaluation.text import text_metrics
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.task import copy_tree
from crs_jax.rl.reward import Normaliser
from crs_jax.rl.sampling import sample
from crs_jax.runtime.checkpoint import done_meta
from crs_jax.runtime.metrics import MetricsWriter
from crs_jax.runtime.versions import read_log
from crs_jax.signals.registry import column
from crs_jax.training import ppo_stage
from crs_jax.training.examples import fresh_instances
from crs_jax.training.ppo_samples import Samples
from crs_jax.training.ppo_stage import Aligned, build, run_ppo
from crs_jax.training.ppo_validation import Validation

PLAIN = Normaliser(np.zeros(3, np.float32), np.ones(3, np.float32), np.float32(1))


@pytest.fixture(scope="module")
def checked(world, tmp_path_factory):
    """The task, its validation, what judges, what a check of the SFT policy finds, and the contexts it is of."""
    task = world.at(tmp_path_factory.mktemp("checked"))
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    validation, instances = Validation(task, graphs, frozen_models), fresh_instances(task, "validation")
    assert validation.count == len(instances) > 10
    contexts = contexts_at(task, "validation", [(i.dialogue, i.turn) for i in instances])
    return task, validation, graphs, frozen_models, validation(frozen_models.reference, PLAIN), instances, contexts


def test_hits_equal_plain_ranks_and_the_reference_has_no_kl(world, checked):
    task, validation, _, frozen_models, found, instances, contexts = checked
    scores = ranking_scores(task, world.sft, contexts, "x")
    hits = []
    for instance, score_N in zip(instances, scores, strict=True):
        turns = task.corpus.validation[instance.dialogue].turns[: instance.turn]
        named = task.corpus.catalogue.rows({item for turn in turns for item in turn.items})
        score_N = score_N.copy()
        score_N[named] = -np.inf
        hits += [(score_N >= score_N[row]).sum() <= 10 for row in instance.fresh]
    assert 0 < np.mean(hits) < 1
    assert found["validation/hr@10"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert found["validation/kl"] == pytest.approx(0.0, abs=1e-4)
    assert validation(frozen_models.reference, PLAIN) == found
    assert validation(moved_far(frozen_models.reference), PLAIN)["validation/kl"] > 0.1


def moved_far(params):
    return jax.tree.map(lambda a: a + 0.1 * np.sin(np.arange(a.size)).reshape(a.shape).astype(a.dtype), params)


def test_way_to_the_optimum_is_the_evaluations(world, checked):
    task, validation, graphs, frozen_models, found, instances, contexts = checked
    assert "validation/share" not in found  # SFT went nowhere
    params = moved_far(frozen_models.reference)
    checks = validation(params, PLAIN)
    ppo = (world.sft[0], params, world.sft[2])
    group = np.array([i.dialogue for i in instances])
    facts = optimum(task, Aligned(ppo, graphs, frozen_models, PLAIN), {"sft": world.sft, "ppo": ppo}, contexts, group)[
        1
    ]
    assert checks["validation/share"] == pytest.approx(facts["share"]["value"], abs=1e-4)
    assert checks["validation/kl-item"] == pytest.approx(facts["kl"], abs=1e-5) != 0
    for row in ("sft", "ppo", "optimum", "rerank"):
        assert checks[f"validation/reward-{row}"] == pytest.approx(facts[f"reward-{row}"]["value"], abs=1e-4)
    assert found["validation/reward-ppo"] == pytest.approx(checks["validation/reward-sft"], abs=1e-5)
    tokens_IR = validation.last.token_IR
    assert checks["validation/recommends"] == np.mean([row[0] >= task.layout.item_offset for row in tokens_IR])


def test_words_are_those_of_the_evaluation(world, checked):
    """Greedy replies, their BLEU and repetition, as the stage evaluate makes them."""
    task, _, _, _, found, instances, contexts = checked
    tokens_IR, _ = generate(task, world.sft, contexts, 0.0, 0, "x")
    catalogue, dialogues = task.corpus.catalogue, task.corpus.validation
    said = [task.tokenizer.decode_reply(tokens, catalogue)[1] for tokens in tokens_IR]
    theirs = [dialogues[i.dialogue].turns[i.turn].render(catalogue.names) for i in instances]
    expected = text_metrics(said, theirs)
    assert found["validation/bleu-4"] == pytest.approx(expected["bleu-4"], abs=1e-9)
    assert found["validation/repetition"] == pytest.approx(expected["repetition"], abs=1e-9)
    assert expected["bleu-4"] > 0
    assert expected["repetition"] > 0


def test_sentiment_is_correlated_with_the_reward(world, checked):
    """The same sampled replies, each by the key of its context, judged as the stage evaluate judges them."""
    task, validation, graphs, frozen_models, found, _, contexts = checked
    assert validation.count % task.config.evaluation.batch  # the last batch is not full
    draw = jax.jit(lambda batch, keys: sample(
        nnx.merge(*world.sft), batch.prompt_CP, batch.mask_CP, keys, group=1, features=batch.features,
        reply_tokens=task.config.data.reply_tokens, block=task.config.ppo.decode_block,
    ))  # fmt: skip
    key = jax.random.key(task.config.seed + 31)
    replies = draw(contexts, jnp.stack([jax.random.fold_in(key, number) for number in range(validation.count)]))
    aligned = Aligned(world.sft, graphs, frozen_models, PLAIN)
    said = np.asarray(replies.tokens_BR), np.asarray(replies.mask_BR)
    judged = judge_replies(task, aligned, world.sft, contexts, *said, "x")
    assert found["validation/reward"] == pytest.approx(judged.reward_B.mean(), abs=1e-5)
    pearson = scipy.stats.pearsonr(judged.signal_BS[:, column("sentiment")], judged.reward_B)[0]
    assert abs(pearson) > 0.01
    assert found["validation/sentiment-reward"] == pytest.approx(pearson, abs=1e-4)


class Heard:
    """A writer that keeps what it is given, by its place and step."""

    def __init__(self):
        self.texts, self.tables = {}, {}

    def text(self, stage, step, name, markdown):
        self.texts[name, step] = markdown

    def table(self, name, columns, rows):
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    def histogram(self, stage, step, name, values):
        self.texts[name, step] = values


def test_samples_hold_a_policy_against_the_one_before_also_after_a_resume(checked):
    """The same contexts and random numbers: a stage that goes on at 3 shows what one that began at 0 does."""
    task, validation, _, frozen_models, _, instances, _ = checked
    moved = jax.tree.map(
        lambda a: a + 0.1 * np.sin(np.arange(a.size)).reshape(a.shape).astype(a.dtype), frozen_models.reference
    )
    heard = []
    for began in (True, False):
        samples, writer = Samples(task, validation, frozen_models.reference, PLAIN), Heard()
        if began:
            validation(frozen_models.reference, PLAIN)
            samples.write(writer, 0)
            assert all(row["reply before"] == row["reply now"] for row in writer.tables["samples"])
        validation(moved, PLAIN)
        samples.write(writer, 3)
        heard.append(writer)
    whole, resumed = heard
    assert resumed.tables == whole.tables
    for place, said in resumed.texts.items():
        np.testing.assert_array_equal(whole.texts[place], said)
    now = validation.last
    np.testing.assert_array_equal(whole.texts["replies/kl", 3], now.kl_I)
    rows = whole.tables["samples"]
    assert len(rows) == 4
    assert any(row["reply before"] != row["reply now"] for row in rows)
    places = {(task.corpus.validation[i.dialogue].dialogue_id, str(i.turn)): n for n, i in enumerate(instances)}
    for row in rows:
        n = places[row["dialogue"], row["message"]]
        turns = task.corpus.validation[instances[n].dialogue].turns
        assert row["person"] == turns[instances[n].turn].render(task.corpus.catalogue.names)
        assert row["context"].endswith(turns[instances[n].turn - 1].render(task.corpus.catalogue.names))
        assert row["reward now"] == pytest.approx(float(now.reward_I[n]))
        assert row["kl before"] == pytest.approx(0.0, abs=1e-3)


def test_a_part_of_the_contexts_and_none(world, tmp_path):
    task = world.at(tmp_path, ppo__validation_contexts=7)
    graphs, _, frozen_models = build(task, world.sft, world.reward)
    assert Validation(task, graphs, frozen_models).count == 7
    task = world.at(tmp_path, ppo__validation_contexts=0)
    none, writer = Validation(task, graphs, frozen_models), Heard()
    assert none(frozen_models.reference, PLAIN) == {}
    Samples(task, none, frozen_models.reference, PLAIN).write(writer, 0)
    assert writer.texts == writer.tables == {}


def test_no_iterations_leave_the_sft_policy_and_a_stage_that_is_done(world, tmp_path):
    task = world.at(tmp_path, ppo__iterations=0)
    for _ in range(2):
        with MetricsWriter(task.workdir, tensorboard=False) as writer:
            aligned = run_ppo(task, writer, world.sft, world.reward)
        assert done_meta(task.workdir, "ppo")["done"]
        for a, b in zip(jax.tree.leaves(aligned.policy[1]), jax.tree.leaves(world.sft[1]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_below_the_floor_ppo_stops_and_keeps_the_policy_before(world, tmp_path, monkeypatch, capsys):
    """SFT hits .40; of the four checks the first holds .32 = .8 x .40, the second does not."""
    hits, policies = iter([0.40, 0.33, 0.31, 0.9, 0.9]), []

    def told(self, params, normaliser):
        policies.append(copy_tree(params))
        return {"validation/hr@10": next(hits), "validation/reward": float(len(policies)), "validation/kl": 0.0}

    monkeypatch.setattr(ppo_stage.Validation, "__call__", told)
    task = world.at(tmp_path, ppo__iterations=4, ppo__checks_a_run=4, ppo__hr_floor=0.8)
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        aligned = run_ppo(task, writer, world.sft, world.reward)
    assert len(policies) == 3
    same = [
        all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(policy), jax.tree.leaves(aligned.policy[1]), strict=True)
        )
        for policy in policies
    ]
    assert same == [False, True, False]
    said = capsys.readouterr().out
    assert "stopped at iteration 2" in said
    assert "warning: validation reward rose" in said
    steps = [line["step"] for line in read_log(tmp_path / "metrics.jsonl") if "validation/hr@10" in line]
    assert steps == [0, 1, 2]
    with MetricsWriter(task.workdir, tensorboard=False) as writer:
        again = run_ppo(task, writer, world.sft, world.reward)  # done: loaded, not gone on with
    for a, b in zip(jax.tree.leaves(again.policy[1]), jax.tree.leaves(aligned.policy[1]), strict=True):
        np.testing.assert_array_equal(a, b)
