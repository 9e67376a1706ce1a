"""Odds of proposals against questionnaires: by hand, and what a policy that knows the answers gets."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from crs_jax.data.catalogue import Catalogue, Item
from crs_jax.data.dialogue import MENTION, RECOMMENDER, SEEKER, Dialogue, Feedback, Turn
from crs_jax.data.instances import ranking_instances
from crs_jax.evaluation.liked import answers, liked_table

CATALOGUE = Catalogue(tuple(Item(i, f"Film {i}") for i in "abcdef"))


def talk(number: int, proposals: str, liked: dict[str, int | None]) -> Dialogue:
    turns = [Turn(SEEKER, f"hello {MENTION}", ("f",))]
    for item in proposals:
        turns += [Turn(RECOMMENDER, MENTION, (item,)), Turn(SEEKER, "well")]
    return Dialogue(str(number), tuple(turns), {item: Feedback(liked=answer) for item, answer in liked.items()})


DIALOGUES = [
    talk(0, "abf", {"a": 1, "b": 0, "f": 1}),  # f was named before: no proposal
    talk(1, "cad", {"c": 0, "a": 1, "d": None}),
    talk(2, "be", {"e": 1}),  # nothing said of b
]


def test_answers_are_of_new_proposals_that_were_answered_for():
    instances = ranking_instances(DIALOGUES, CATALOGUE)
    number, row, liked = answers(instances, DIALOGUES, CATALOGUE)
    found = [(instances[n].dialogue, "abcdef"[r], x) for n, r, x in zip(number, row, liked, strict=True)]
    assert found == [(0, "a", 1), (0, "b", 0), (1, "c", 0), (1, "a", 1), (2, "e", 1)]


def test_table_against_scikit_learn():
    instances, rng = ranking_instances(DIALOGUES, CATALOGUE), np.random.default_rng(1)
    scores = {row: rng.normal(size=(len(instances), 6)) * 2 for row in ("sft", "ppo", "mix")}
    table = liked_table(instances, DIALOGUES, CATALOGUE, scores, 50)
    number, row, liked = answers(instances, DIALOGUES, CATALOGUE)
    logp = {}
    for name, s in scores.items():
        p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
        logp[name] = np.log(p[number, row])
    logp["ppo over sft"] = logp["ppo"] - logp["sft"]
    assert table.keys() == logp.keys()
    for name, values in logp.items():
        assert table[name]["auc"] == pytest.approx(roc_auc_score(liked, values)), name
        assert table[name]["n"] == 5
    # Adding to a context's scores alike changes nothing: they are normalised.
    moved = {name: s + rng.normal(size=(len(instances), 1)) * 50 for name, s in scores.items()}
    again = liked_table(instances, DIALOGUES, CATALOGUE, moved, 50)
    assert all(again[name]["auc"] == pytest.approx(found["auc"]) for name, found in table.items())


def test_without_two_answers_there_is_no_table():
    some = DIALOGUES[2:]
    instances = ranking_instances(some, CATALOGUE)
    assert liked_table(instances, some, CATALOGUE, {"sft": np.zeros((len(instances), 6))}, 50) == {}
