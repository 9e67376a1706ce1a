"""Ranking by length: who is in which bucket by hand, figures against loops, and the console's table."""

import math

import numpy as np
import pytest
import scipy.stats

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.lengths import buckets, by_length, print_lengths
from crs_jax.evaluation.pairs import make_pairs
from crs_jax.evaluation.ranking import ranks_by_protocol

ITEMS = 30
CATALOGUE = Catalogue(tuple(Item(str(i), f"Film {i}") for i in range(ITEMS)))
PLACES = {"1-3": (1, 2, 3), "4-6": (4, 5, 6), "7-10": (7, 8, 9, 10), "11+": range(11, 99)}


def test_buckets_by_hand():
    masks = buckets(np.arange(1, 14), 5)
    assert {name: (1 + np.flatnonzero(mask)).tolist() for name, mask in masks.items()} == {
        "1-3": [1, 2, 3],
        "4-6": [4, 5, 6],
        "7-10": [7, 8, 9, 10],
        "11+": [11, 12, 13],
        "within-window": [1, 2, 3, 4, 5],
        "beyond-window": [6, 7, 8, 9, 10, 11, 12, 13],
    }


@pytest.fixture(scope="module")
def setting():
    rng, dialogues = np.random.default_rng(0), []
    for d in range(40):
        turns = [Turn(SEEKER, "hello")]
        for t in range(1, int(rng.integers(3, 16))):
            items = tuple(map(str, rng.choice(ITEMS, rng.integers(0, 3), replace=False)))
            turns.append(Turn((SEEKER, RECOMMENDER)[t % 2], "try " + MENTION * len(items), items))
        dialogues.append(Dialogue(str(d), tuple(turns)))
    instances = ranking_instances(dialogues, CATALOGUE)
    pairs = make_pairs(instances, dialogues, CATALOGUE)
    scores = {row: rng.normal(size=(len(instances), ITEMS)).astype(np.float32) for row in ("sft", "ppo")}
    scores["ppo"][np.arange(len(instances)), [i.targets[0] for i in instances]] += 1.0
    return dialogues, instances, pairs, scores


def test_figures_equal_a_loop(setting):
    dialogues, instances, pairs, scores = setting
    ranks = {row: ranks_by_protocol(s, pairs, 9) for row, s in scores.items()}
    found = by_length(instances, pairs, ranks, 6, (1, 5), 200)
    assert found["window"] == 6
    for targets in ("fresh", "all"):
        assert set(found[targets]) == {*PLACES, "within-window", "beyond-window"}
        gained: dict[str, dict[str, list]] = {}
        for i, instance in enumerate(instances):
            turns = dialogues[instance.dialogue].turns[: instance.turn]
            named = {int(item) for turn in turns for item in turn.items} if targets == "fresh" else set()
            names = [name for name, places in PLACES.items() if len(turns) in places]
            names.append("beyond-window" if len(turns) > 6 else "within-window")
            for target in instance.fresh if targets == "fresh" else instance.targets:
                for row in scores:
                    rivals = [n for n in range(ITEMS) if n not in named or n == target]
                    rank = sum(scores[row][i, n] >= scores[row][i, target] for n in rivals)
                    for name in names:
                        values = gained.setdefault(name, {}).setdefault(row, [])
                        values.append((rank <= 5, (rank <= 5) / math.log2(1 + rank)))
        for name, rows in gained.items():
            bucket, mean = found[targets][name], {row: np.mean(values, 0) for row, values in rows.items()}
            assert bucket["n"] == len(rows["sft"]) > 5
            assert not any(key.startswith("mrr") for key in bucket["sft"])
            for m, measure in enumerate(("hr@5", "ndcg@5")):
                for row in rows:
                    assert bucket[row][measure]["value"] == pytest.approx(mean[row][m]), (name, row)
                gap = bucket["ppo-sft"][measure]
                assert gap["value"] == pytest.approx(mean["ppo"][m] - mean["sft"][m])
                assert gap["low"] <= gap["value"] <= gap["high"]
    assert found["fresh"]["7-10"]["n"] < found["all"]["7-10"]["n"]  # the later, the more was named before


def test_interval_is_of_the_buckets_dialogues(setting):
    """One pair a dialogue: the interval of a mean of independent values, near the normal one."""
    _, instances, pairs, _ = setting
    rng, once = np.random.default_rng(1), {}
    for p, i in enumerate(pairs.instance_P):
        if 4 <= instances[i].turn <= 6:
            once.setdefault(int(pairs.dialogue_P[p]), p)
    keep = np.isin(np.arange(len(pairs)), list(once.values()))
    rank_P = rng.integers(1, 11, keep.sum())
    found = by_length(instances, pairs.select(keep), {"sft": {"all": {"full": rank_P}, "fresh": {
        "full": rank_P[pairs.fresh_P[keep]]}}}, 5, (5,), 4000)  # fmt: skip
    hit_P = rank_P <= 5
    assert set(found["all"]) == {"4-6", "within-window"}
    figure, error = found["all"]["4-6"]["sft"]["hr@5"], scipy.stats.sem(hit_P.astype(float), ddof=0)
    assert (figure["low"], figure["high"]) == pytest.approx(
        (hit_P.mean() - 1.96 * error, hit_P.mean() + 1.96 * error), abs=0.4 * error
    )
    assert "ppo-sft" not in found["all"]["4-6"]


def test_table_on_the_console(setting, capsys):
    _, instances, pairs, scores = setting
    ranks = {row: ranks_by_protocol(s, pairs, 9) for row, s in scores.items()}
    found = by_length(instances, pairs, ranks, 6, (1, 10), 20)
    print_lengths(found)
    said = capsys.readouterr().out
    assert "window of 6" in said
    figure = found["fresh"]["11+"]["ppo-sft"]["ndcg@10"]
    line = [line for line in said.splitlines() if line.startswith("11+")][-1]
    assert f"{figure['value']:+.4f} ({figure['low']:+.3f} .. {figure['high']:+.3f})" in line
    print_lengths({})
    assert capsys.readouterr().out == ""
