"""The tilted policy against scipy's optimiser and plain sums; rewards of acts against the reward model alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from flax import nnx
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from tiny_task import fresh_models, make_task, tiny_config

from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.liked import RANDOM, answers, reward_table, rivals
from crs_jax.evaluation.observed import by_place
from crs_jax.evaluation.optimum import first_item, item_rewards, optimum
from crs_jax.evaluation.policies import ranking_scores
from crs_jax.evaluation.tilting import STEEPEST, slope_of, tilt
from crs_jax.inputs.contexts import contexts_at
from crs_jax.inputs.labels import label
from crs_jax.inputs.task import copy_tree
from crs_jax.rl.frozen_models import Aligned, Graphs, act_scores
from crs_jax.rl.reward import Normaliser, predict, score
from crs_jax.training.ppo_stage import make_frozen_models


def acts(rng, contexts, count, mass=1.0):
    """Log-probabilities of `count` acts whose sum is `mass`, and their rewards."""
    logits = rng.normal(0, 1.5, (contexts, count))
    return scipy.special.log_softmax(logits, 1) + np.log(mass), rng.normal(0, 1, (contexts, count))


def test_tilt_is_the_best_there_is():
    """E[R] - beta KL of the tilted policy equals the maximum that a general optimiser finds."""
    rng = np.random.default_rng(0)
    logp, reward = acts(rng, 3, 5)
    beta = 0.7
    found = tilt(logp, reward, 1 / beta)
    for i in range(3):

        def loss(z, i=i):
            logq = scipy.special.log_softmax(z)
            return -(np.exp(logq) @ (reward[i] - beta * (logq - logp[i])))

        best = scipy.optimize.minimize(loss, np.zeros(5), tol=1e-12)
        assert found.reward_I[i] - beta * found.kl_I[i] == pytest.approx(-best.fun, abs=1e-8)
        np.testing.assert_allclose(found.logp_IA[i], scipy.special.log_softmax(best.x), atol=1e-4)


def test_unscored_mass_is_one_more_act_of_mean_reward():
    rng = np.random.default_rng(1)
    logp, reward = acts(rng, 4, 6, mass=0.6)
    mean = (np.exp(logp) * reward).sum(1, keepdims=True) / 0.6
    whole = tilt(np.concatenate([logp, np.full((4, 1), np.log(0.4))], 1), np.concatenate([reward, mean], 1), 1.3)
    part = tilt(logp, reward, 1.3)
    np.testing.assert_allclose(part.logp_IA, whole.logp_IA[:, :-1], atol=1e-12)
    np.testing.assert_allclose(part.kl_I, whole.kl_I, atol=1e-12)
    np.testing.assert_allclose(part.reward_I, whole.reward_I, atol=1e-12)


def test_slope_meets_the_kl():
    rng = np.random.default_rng(2)
    logp, reward = acts(rng, 20, 8)
    for kl in (0.01, 0.3, 1.0):
        assert tilt(logp, reward, slope_of(logp, reward, kl)).kl_I.mean() == pytest.approx(kl, rel=1e-6)
    assert slope_of(logp, reward, 0.0) == 0.0
    assert slope_of(logp, reward, 50.0) == STEEPEST  # no tilt has that much
    np.testing.assert_allclose(tilt(logp, reward, 0.0).logp_IA, logp)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """An untrained SFT policy, one that differs from it, judges whose rewards differ by item, and test contexts."""
    cache = tmp_path_factory.mktemp("cache")
    config = tiny_config(cache, evaluation__optimum_acts=12, reward__clip=50.0)
    task = make_task(tmp_path_factory.mktemp("optimum"), config)
    sft, reward = fresh_models(task)
    rng = np.random.default_rng(3)
    heads = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 1, a.shape), a.dtype), reward[1]["heads"])
    frozen_models = make_frozen_models(task, sft, (reward[0], {**reward[1], "heads": heads}, reward[2]))
    normaliser = Normaliser(jnp.array([0.1, 0.2, -0.1]), jnp.array([1.5, 0.4, 2.0]), jnp.float32(1.3))
    params = copy_tree(sft[1])
    params["items"]["bias"] = params["items"]["bias"] + jnp.asarray(
        rng.normal(0, 1, params["items"]["bias"].shape), jnp.float32
    )
    ppo = (sft[0], params, sft[2])
    aligned = Aligned(ppo, Graphs(None, sft[0], reward[0]), frozen_models, normaliser)
    where = [(d, t) for d, t in task.replies("test")][:20]
    return task, aligned, {"sft": sft, "ppo": ppo}, contexts_at(task, "test", where), np.array([d for d, _ in where])


def rewards_of(task, aligned, contexts, rows):
    return item_rewards(task, *aligned[1:], contexts, np.asarray(rows, np.int32))


def test_first_item_is_the_ranking(setting):
    task, _, models, contexts, _ = setting
    logp = first_item(task, models["ppo"], contexts, "x")
    assert logp.shape == (20, task.layout.num_items)
    np.testing.assert_allclose(np.exp(logp).sum(1), 1.0, rtol=1e-5)
    logits = ranking_scores(task, models["ppo"], contexts, "x")
    gap = logp - logits
    np.testing.assert_allclose(gap, np.broadcast_to(gap[:, :1], gap.shape), atol=1e-4)


def test_rewards_of_acts_equal_the_reward_model_on_each_alone(setting):
    task, aligned, _, contexts, _ = setting
    layout, rng = task.layout, np.random.default_rng(4)
    rows = np.stack([rng.permutation(layout.num_items)[:5] for _ in range(20)]).astype(np.int32)
    scored = act_scores(*aligned[1:], contexts, jnp.asarray(rows), layout, True, 50.0)
    found = np.concatenate([scored[0], scored[1][:, None]], 1)
    np.testing.assert_allclose(rewards_of(task, aligned, contexts, rows), found[:, :-1], atol=1e-4)
    frozen_models = aligned.frozen_models
    model = nnx.merge(aligned.graphs.reward, frozen_models.reward, frozen_models.reward_frozen)
    items = np.asarray(frozen_models.items_NE)
    for i in (0, 1, 7, 19):
        for a, row in enumerate([*rows[i].tolist(), None]):
            act = [] if row is None else [layout.item_offset + row]
            tokens = np.array([[[*act, layout.say]]])
            one = [np.asarray(part)[i : i + 1] for part in contexts[:2]]
            known = contexts.features
            beside = [np.asarray(part)[i : i + 1] for part in (known.text, known.named_mean, known.named)]
            evidence = jax.tree.map(lambda a: np.asarray(a)[i : i + 1], contexts.features)  # noqa: B023
            say_BS, _, _ = predict(model, *one, tokens, np.ones_like(tokens, bool), evidence)
            parts = [beside[n][0] for n in (0, 1) if beside[n].any()]
            new = act and row not in beside[2]
            relevance = sum(part @ items[row] for part in parts) / max(len(parts), 1) if new else np.nan
            exact = {"relevance": jnp.array([relevance], jnp.float32)}
            expected = score(
                say_BS[None], say_BS[None], exact, aligned.normaliser, frozen_models.weight_S, 50.0, 0.0
            ).act_B
            assert found[i, a] == pytest.approx(float(expected[0]), abs=2e-4)


def test_optimum_against_sums_over_the_whole_catalogue(setting):
    """With all items scored: KL as PPO's, the scores PPO's reward would choose, and shares by plain sums."""
    task, aligned, models, contexts, group = setting
    with task.config.unlocked():
        task.config.evaluation.optimum_acts = task.layout.num_items + 5
    scores, facts = optimum(task, aligned, models, contexts, group)
    sft, ppo = (first_item(task, models[row], contexts, "x").astype(float) for row in ("sft", "ppo"))
    N = task.layout.num_items
    reward = rewards_of(task, aligned, contexts, np.broadcast_to(np.arange(N), (20, N)))
    kl = (np.exp(ppo) * (ppo - sft)).sum(1).mean()
    assert facts["acts"] == N
    assert facts["mass-sft"] == pytest.approx(1.0, abs=1e-5)
    assert facts["mass-ppo"] == pytest.approx(1.0, abs=1e-5)
    assert facts["kl"] == pytest.approx(kl, rel=1e-4)
    assert facts["kl-optimum"] == pytest.approx(kl, rel=1e-4)
    logq = scipy.special.log_softmax(sft + reward / facts["beta"], 1)
    gap = logq - scores["optimum"]
    np.testing.assert_allclose(gap, np.broadcast_to(gap[:, :1], gap.shape), atol=2e-3)
    means = [(np.exp(logp) * reward).sum(1).mean() for logp in (sft, ppo, logq)]
    for row, mean in zip(("sft", "ppo", "optimum", "rerank"), [*means, reward.max(1).mean()], strict=True):
        assert facts[f"reward-{row}"]["value"] == pytest.approx(mean, abs=1e-4)
    np.testing.assert_array_equal(np.argsort(-scores["rerank"], 1)[:, 0], np.argmax(reward, 1))
    np.testing.assert_allclose(scores["rerank"], reward, atol=1e-5)
    share = (means[1] - means[0]) / (means[2] - means[0])
    assert facts["share"]["value"] == pytest.approx(share, abs=1e-3)
    assert abs(share) < 0.5  # this policy went nowhere in particular


def test_a_policy_that_went_nowhere_has_no_share(setting):
    task, aligned, models, contexts, group = setting
    scores, facts = optimum(task, aligned, {"sft": models["sft"], "ppo": models["sft"]}, contexts, group)
    assert np.isnan(facts["share"]["value"])
    assert facts["kl"] == pytest.approx(0.0, abs=1e-6)
    logp = first_item(task, models["sft"], contexts, "x")
    np.testing.assert_allclose(scores["optimum"], logp, atol=1e-4)


def test_rerank_leaves_what_was_not_scored_behind_in_its_order(setting):
    task, aligned, models, contexts, group = setting
    with task.config.unlocked():
        task.config.evaluation.optimum_acts = 6
    scores = optimum(task, aligned, models, contexts, group)[0]["rerank"]
    sft, ppo = (first_item(task, models[row], contexts, "x") for row in ("sft", "ppo"))
    for i, likely in enumerate(np.maximum(sft, ppo)):
        top = np.argsort(-likely)[:6]
        rest = np.setdiff1d(np.arange(len(likely)), top)
        assert scores[i, rest].max() < scores[i, top].min()
        np.testing.assert_array_equal(np.argsort(-scores[i, rest]), np.argsort(-sft[i, rest]))
        reward = rewards_of(task, aligned, contexts, np.broadcast_to(top, (20, 6)))[i]
        np.testing.assert_allclose(scores[i, top], reward, atol=1e-5)


def test_rewards_of_liked_proposals_by_plain_counting(setting):
    """Each proposal's reward against those of its rivals, which are new in the context and drawn anew by the seed."""
    task, aligned, _, _, _ = setting
    instances = [i for i in ranking_instances(task.corpus.test, task.corpus.catalogue) if i.fresh]
    contexts = contexts_at(task, "test", [(i.dialogue, i.turn) for i in instances])
    found = reward_table(task, aligned, instances, task.corpus.test, contexts)
    number, row, liked = answers(instances, task.corpus.test, task.corpus.catalogue)
    rng, higher, own = np.random.default_rng([task.config.seed, 37]), {"any": [], "known": []}, []
    counts = np.full(len(task.corpus.catalogue), 0.5)
    for dialogue in task.corpus.train:
        for turn in dialogue.turns:
            if turn.role == "recommender":
                counts[task.corpus.catalogue.rows(turn.distinct_items)] += 1
    for n, r, answer in zip(number, row, liked, strict=True):
        one = jax.tree.map(lambda a: np.asarray(a)[n : n + 1], contexts)  # noqa: B023
        for name, share in (("any", np.ones(len(counts))), ("known", counts)):
            others = rivals(rng, np.asarray(contexts.features.named[n]), int(r), share)
            assert len(set(others)) == RANDOM
            assert not {int(r), *contexts.features.named[n].tolist()} & set(others.tolist())
            reward = rewards_of(task, aligned, one, [[r, *others]])[0]
            if answer == 1:
                higher[name].append(np.mean((reward[0] > reward[1:]) + 0.5 * (reward[0] == reward[1:])))
        own.append(reward[0])
    assert found["reward"]["auc"] == pytest.approx(roc_auc_score(liked, own), abs=1e-6)
    for name, values in higher.items():
        assert found[f"reward, over {name} items"]["auc"] == pytest.approx(np.mean(values), abs=1e-3)
        assert found[f"reward, over {name} items"]["n"] == len(values) > 2


def test_place_alone_equals_a_regression(setting):
    task = setting[0]
    where = task.replies("validation")[:30]
    got = by_place(task, "validation", where)
    signal_DTS = label(task, "train").signal_DTS

    def features(dialogues, at):
        turns = [(t, dialogues[d].turns[t]) for d, t in at]
        return np.array([[t, t * t, np.log(1 + len(turn.text.split())), bool(turn.items)] for t, turn in turns], float)

    known = task.replies("train")
    for s in range(3):
        there = [at for at in known if np.isfinite(signal_DTS[(*at, s)])]
        model = LinearRegression().fit(features(task.corpus.train, there), [signal_DTS[(*at, s)] for at in there])
        expected = model.predict(features(task.corpus.validation, where))
        proposes = np.array([bool(task.corpus.validation[d].turns[t].items) for d, t in where])
        same = proposes | (s != 1)  # what proposes nothing has no relevance, and no label says how it would be
        np.testing.assert_allclose(got[same, s], expected[same], atol=1e-5)
        assert same.sum() > 8
