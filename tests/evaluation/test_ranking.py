import math

import numpy as np
import pytest
import pytrec_eval

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.evaluation import ranking
from crs_jax.evaluation.pairs import Pairs
from crs_jax.runtime.errors import InputError

KS = (1, 5, 10, 50)


def padded(rows):
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32).reshape(len(rows), width)


def pairs_of(targets, named, dialogues):
    counts = [len(t) for t in targets]
    flat = [(i, t) for i, row in enumerate(targets) for t in row]
    return Pairs(
        instance_P=np.repeat(np.arange(len(targets)), counts),
        dialogue_P=np.repeat(np.array(dialogues), counts),
        target_P=np.array([t for _, t in flat]),
        fresh_P=np.array([t not in named[i] for i, t in flat], bool),
        dialogue_I=np.array(dialogues),
        targets_IX=padded(targets),
        named_IX=padded(named),
    )


def random_pairs(rng, instances=400, items=120, dialogues=90):
    targets = [rng.choice(items, rng.integers(1, 4), replace=False).tolist() for _ in range(instances)]
    named = [rng.choice(items, rng.integers(0, 6), replace=False).tolist() for _ in range(instances)]
    return pairs_of(targets, named, np.sort(rng.integers(0, dialogues, instances)))


def loop_rank(scores_N, target, candidates):
    return 1 + sum(scores_N[item] >= scores_N[target] for item in candidates if item != target)


@pytest.mark.parametrize("exclude_named", [False, True])
def test_full_ranks_equal_a_plain_loop_with_ties_against_the_target(exclude_named):
    rng = np.random.default_rng(0)
    pairs = random_pairs(rng)
    scores_IN = rng.integers(0, 12, (400, 120)).astype(np.float32)  # many ties
    expected = []
    for i, target in zip(pairs.instance_P, pairs.target_P, strict=True):
        named = set(pairs.named_IX[i]) - {-1, target} if exclude_named else set()
        expected.append(loop_rank(scores_IN[i], target, set(range(120)) - named))
    np.testing.assert_array_equal(ranking.full_ranks(scores_IN, pairs, exclude_named), expected)


def test_constant_scores_earn_nothing():
    pairs = random_pairs(np.random.default_rng(1), items=60)
    scores_IN = np.zeros((400, 60), np.float32)
    assert set(ranking.full_ranks(scores_IN, pairs)) == {60}
    assert set(ranking.sampled_ranks(scores_IN, pairs, negatives=20)) == {21}


def test_metrics_agree_with_pytrec_eval():
    rng = np.random.default_rng(2)
    pairs = random_pairs(rng)
    scores_IN = rng.permuted(np.tile(np.arange(120.0), (400, 1)), axis=1)  # without ties: pytrec_eval breaks them by id
    by_metric = ranking.gains(ranking.full_ranks(scores_IN, pairs), KS)
    qrels = {f"q{p}": {f"d{t}": 1} for p, t in enumerate(pairs.target_P)}
    run = {
        f"q{p}": {f"d{n}": float(scores_IN[i, n]) for n in range(120)} for p, i in enumerate(pairs.instance_P.tolist())
    }
    cuts = ",".join(map(str, KS))
    found = pytrec_eval.RelevanceEvaluator(qrels, {f"recall.{cuts}", f"ndcg_cut.{cuts}"}).evaluate(run)
    for k in KS:
        for ours, theirs in ((f"hr@{k}", f"recall_{k}"), (f"ndcg@{k}", f"ndcg_cut_{k}")):
            expected = [found[f"q{p}"][theirs] for p in range(len(pairs))]
            np.testing.assert_allclose(by_metric[ours], expected, atol=1e-12)
        short = {q: dict(sorted(d.items(), key=lambda kv: -kv[1])[:k]) for q, d in run.items()}
        reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(short)
        expected = [reciprocal[f"q{p}"]["recip_rank"] for p in range(len(pairs))]
        np.testing.assert_allclose(by_metric[f"mrr@{k}"], expected, atol=1e-12)


def test_gains_worked_by_hand():
    by_metric = ranking.gains(np.array([1, 3, 6]), (1, 5))
    np.testing.assert_array_equal(by_metric["hr@1"], [1, 0, 0])
    np.testing.assert_array_equal(by_metric["hr@5"], [1, 1, 0])
    np.testing.assert_allclose(by_metric["ndcg@5"], [1, 0.5, 0])
    np.testing.assert_allclose(by_metric["mrr@5"], [1, 1 / 3, 0])


@pytest.mark.parametrize("exclude_named", [False, True])
def test_negatives_are_distinct_allowed_and_uniform(exclude_named):
    pairs = pairs_of([[0, 1]] * 3000, [[2, 3]] * 3000, [0] * 3000)
    drawn_PK = ranking.draw_negatives(pairs, 20, 5, seed=7, exclude_named=exclude_named)
    assert drawn_PK.shape == (6000, 5)
    assert all(len(set(row)) == 5 for row in drawn_PK.tolist())
    counts_N = np.bincount(drawn_PK.ravel(), minlength=20)
    barred = 4 if exclude_named else 2
    assert counts_N[:barred].sum() == 0
    expected = 6000 * 5 / (20 - barred)
    chi2 = ((counts_N[barred:] - expected) ** 2 / expected).sum()
    assert chi2 < 2.5 * (20 - barred)


def test_negatives_depend_on_the_seed_alone():
    first, second = (random_pairs(np.random.default_rng(4)) for _ in range(2))
    a, b = (ranking.draw_negatives(p, 120, 30, seed=1) for p in (first, second))
    np.testing.assert_array_equal(a, b)
    assert (a != ranking.draw_negatives(first, 120, 30, seed=2)).any()


def test_sampled_ranks_equal_a_plain_loop():
    rng = np.random.default_rng(5)
    pairs = random_pairs(rng)
    scores_IN = rng.integers(0, 30, (400, 120)).astype(np.float32)
    ranks_P = ranking.sampled_ranks(scores_IN, pairs, negatives=25, seed=3)
    drawn_PK = ranking.draw_negatives(pairs, 120, 25, seed=3)
    expected = [
        loop_rank(scores_IN[i], t, row) for i, t, row in zip(pairs.instance_P, pairs.target_P, drawn_PK, strict=True)
    ]
    np.testing.assert_array_equal(ranks_P, expected)


def test_a_small_catalogue_gives_all_the_negatives_it_has():
    rng = np.random.default_rng(6)
    pairs = random_pairs(rng, instances=50, items=12)
    scores_IN = rng.normal(size=(50, 12)).astype(np.float32)
    expected = []
    for i, target in zip(pairs.instance_P, pairs.target_P, strict=True):
        expected.append(loop_rank(scores_IN[i], target, set(range(12)) - (set(pairs.targets_IX[i]) - {target})))
    np.testing.assert_array_equal(ranking.sampled_ranks(scores_IN, pairs, negatives=99), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_name_the_instance(bad):
    pairs = random_pairs(np.random.default_rng(7), instances=600)
    scores_IN = np.zeros((600, 120), np.float32)
    scores_IN[431, 17] = bad
    for ranks in (ranking.full_ranks, ranking.sampled_ranks):
        with pytest.raises(InputError, match=r"instance 431 .*item row 17") as error:
            ranks(scores_IN, pairs)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="expected one row for 600 instances"):
        ranking.full_ranks(scores_IN[:5], pairs)


def test_summary_is_the_mean_and_resamples_dialogues():
    """The interval equals that of a plain loop over resampled dialogues (another generator, so within noise)."""
    rng = np.random.default_rng(8)
    dialogue_P = np.repeat(np.arange(80), rng.integers(1, 9, 80))
    lucky_D = rng.random(80) < 0.4
    ranks_P = np.where(lucky_D[dialogue_P], rng.integers(1, 6, len(dialogue_P)), rng.integers(20, 90, len(dialogue_P)))
    summary = ranking.summarise(ranks_P, dialogue_P, (1, 5), bootstrap=4000, seed=0)
    assert summary["hr@5"]["value"] == pytest.approx(float(np.mean(ranks_P <= 5)))
    assert summary["ndcg@5"]["value"] == pytest.approx(
        sum(1 / math.log2(1 + r) for r in ranks_P.tolist() if r <= 5) / len(ranks_P)
    )
    groups = [ranks_P[dialogue_P == d] for d in range(80)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([groups[d] for d in rng.integers(0, 80, 80)])
        means.append(np.mean(drawn <= 5))
    low, high = np.percentile(means, [2.5, 97.5])
    assert summary["hr@5"]["low"] == pytest.approx(low, abs=0.012)
    assert summary["hr@5"]["high"] == pytest.approx(high, abs=0.012)
    single = ranking.summarise(ranks_P, np.arange(len(ranks_P)), (5,), bootstrap=2000, seed=0)["hr@5"]
    assert high - low > 1.5 * (single["high"] - single["low"])  # pairs of one dialogue are alike


def test_summary_without_pairs_is_nan():
    summary = ranking.summarise(np.zeros(0, int), np.zeros(0, int), (1,))
    assert all(math.isnan(x) for figures in summary.values() for x in figures.values())


def test_row_has_the_four_protocols():
    rng = np.random.default_rng(9)
    pairs = random_pairs(rng)
    scores_IN = rng.normal(size=(400, 120)).astype(np.float32)
    row = ranking.ranking_row(scores_IN, pairs, KS, negatives=30, bootstrap=50)
    assert {(t, p) for t, both in row.items() for p in both} == {
        ("all", "full"),
        ("all", "sampled"),
        ("fresh", "full"),
        ("fresh", "sampled"),
    }
    assert list(row["all"]["full"]) == [f"{m}@{k}" for k in KS for m in ("hr", "ndcg", "mrr")]
    fresh = pairs.select(pairs.fresh_P)
    expected = np.mean(ranking.full_ranks(scores_IN, fresh, exclude_named=True) <= 10)
    assert row["fresh"]["full"]["hr@10"]["value"] == pytest.approx(expected)
    for figures in row["fresh"]["sampled"].values():
        assert figures["low"] <= figures["value"] <= figures["high"]


def test_paired_difference():
    rng = np.random.default_rng(10)
    dialogue_P = np.repeat(np.arange(100), 3)
    a = rng.integers(1, 40, 300)
    better = np.maximum(a - rng.integers(0, 8, 300), 1)
    up = ranking.paired_difference(better, a, dialogue_P, (5,), bootstrap=999)["hr@5"]
    assert up["value"] == pytest.approx(np.mean(better <= 5) - np.mean(a <= 5))
    assert up["low"] > 0
    assert up["p"] == pytest.approx(2 / 1000)
    down = ranking.paired_difference(a, better, dialogue_P, (5,), bootstrap=999)["hr@5"]
    assert (down["value"], down["low"], down["high"]) == pytest.approx((-up["value"], -up["high"], -up["low"]))
    same = ranking.paired_difference(a, a, dialogue_P, (5,))["hr@5"]
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_paired_difference_p_is_uniform_under_no_effect():
    rng = np.random.default_rng(11)
    dialogue_P = np.repeat(np.arange(150), 2)
    p = [
        ranking.paired_difference(rng.integers(1, 20, 300), rng.integers(1, 20, 300), dialogue_P, (5,), 200, seed=s)[
            "hr@5"
        ]["p"]
        for s in range(120)
    ]
    assert 0.35 < np.mean(np.array(p) < 0.5) < 0.65
    assert np.mean(np.array(p) < 0.05) < 0.12


def test_success_rate_and_reward_per_length_worked_by_hand():
    catalogue = Catalogue(tuple(Item(name, name) for name in "abcd"))
    turns = tuple(Turn((SEEKER, RECOMMENDER)[t % 2], "hi") for t in range(8))
    dialogues = [
        Dialogue("0", turns, {"a": Feedback(0, 1, 1), "b": Feedback(1, 1, 0), "c": Feedback(1, 0, 1)}),
        Dialogue("1", turns[:4], {"d": Feedback(1, 0, 0)}),
        Dialogue("2", turns[:4]),  # no questionnaire: left out
    ]
    # ranked first: instance 0 'a', but it is named, so 'b' (seen: 0.5); 1 'c' (liked: 1); 2 'd' (neither); 3 left out
    scores_IN = np.array([[9, 5, 1, 0], [0, 1, 9, 2], [1, 1, 1, 3], [9, 0, 0, 0]], np.float32)
    pairs = pairs_of([[2], [2], [3], [0]], [[0], [0], [], []], [0, 0, 1, 2])
    found = ranking.success_rate_and_rdl(scores_IN, pairs, dialogues, catalogue, bootstrap=200)
    assert found["sr"]["value"] == 0.5
    assert found["rdl"]["value"] == pytest.approx((1.5 / 8 + 0) / 2)
    assert found["rdl-round"]["value"] == pytest.approx((1.5 / 2 + 0) / 2)
    assert (found["sr"]["low"], found["sr"]["high"]) == (0.0, 1.0)
    repeated = ranking.success_rate_and_rdl(scores_IN, pairs, dialogues, catalogue, exclude_named=False)
    assert repeated["rdl"]["value"] == pytest.approx((2 / 8 + 0) / 2)
    none = ranking.success_rate_and_rdl(scores_IN[3:], pairs_of([[0]], [[]], [2]), dialogues, catalogue)
    assert math.isnan(none["sr"]["value"])
