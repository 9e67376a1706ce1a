"""Signs of reward hacking: measures against loops, and each warning by a log that calls for it alone."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import make_layout, random_replies

from crs_jax.rl.scoring import parts
from crs_jax.training.health import measures, warnings

LAYOUT = make_layout(words=4, items=6, act_items=3)
CALM = {
    "reward": 0.0, "kl": 1.0, "entropy/act": 3.0, "entropy/word": 2.0, "reply_length": 10.0, "ended": 1.0,
    "health/repetition": 0.1, "health/popularity": 0.5, "health/distinct": 0.8, "seconds": 1.0,
}  # fmt: skip


def test_measures_equal_loops():
    rng = np.random.default_rng(0)
    tokens, mask = random_replies(rng, LAYOUT, 12, 14)
    popularity = rng.normal(size=8).astype(np.float32)
    split = parts(jnp.asarray(tokens), jnp.asarray(mask), LAYOUT)
    got = {name: float(value) for name, value in measures(jnp.asarray(tokens), split, jnp.asarray(popularity)).items()}
    again, pairs, items = 0, 0, []
    for row, real in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True):
        said = row.index(LAYOUT.say)
        items += [token - LAYOUT.item_offset for token in row[:said]]
        words, seen = row[said + 1 : real], set()
        for pair in itertools.pairwise(words):
            again, pairs = again + (pair in seen), pairs + 1
            seen.add(pair)
    assert again > 5
    assert got["health/repetition"] == pytest.approx(again / pairs, rel=1e-6)
    assert got["health/popularity"] == pytest.approx(np.mean(popularity[items]), rel=1e-5)
    assert got["health/distinct"] == pytest.approx(len(set(items)) / len(items), rel=1e-6)


def test_nothing_proposed_and_nothing_said():
    tokens = jnp.full((2, 5), LAYOUT.pad).at[:, 0].set(LAYOUT.say)
    split = parts(tokens, jnp.arange(5)[None] < jnp.ones((2, 1)), LAYOUT)
    assert {float(v) for v in measures(tokens, split, jnp.ones(8)).values()} == {0.0}


@pytest.mark.parametrize(
    ("kind", "late"),
    [
        ("kl", {"kl": 10.5}),
        ("entropy/act", {"entropy/act": 0.99}),
        ("entropy/word", {"entropy/word": 0.6}),
        ("length", {"reply_length": 6.5}),
        ("length", {"reply_length": 15.5}),
        ("ended", {"ended": 0.89}),
        ("repetition", {"health/repetition": 0.16}),
        ("popularity", {"health/popularity": -0.6}),
        ("coverage", {"health/distinct": 0.39}),
        ("spread", {"reward/spread": 0.62}),
    ],
)
def test_each_warning_alone(kind, late):
    calm = {**CALM, "reward/spread": 0.3}
    log = [calm] * 5 + [{**calm, "kl": 99.0}] * 3 + [{**calm, **late}] * 5  # what is over no longer counts
    assert list(warnings(log)) == [kind]


def test_a_calm_log_and_a_short_one_warn_of_nothing():
    assert warnings([CALM] * 20) == {}
    assert warnings([CALM] * 2 + [{**CALM, "kl": 99.0}] * 2) == {}
    assert warnings([]) == {}


def check(hits, reward, **more):
    return {"validation/hr@10": hits, "validation/reward": reward, "validation/kl": 0.0} | {
        f"validation/{name.replace('_', '-')}": value for name, value in more.items()
    }


def test_reward_up_while_hits_go_down():
    assert list(warnings([check(0.2, 0.0), CALM, check(0.17, 0.5)])) == ["hr"]
    assert warnings([check(0.2, 0.0), check(0.19, 0.5)]) == {}
    assert warnings([check(0.2, 0.0), check(0.1, -0.5)]) == {}


def test_reward_up_while_bleu_goes_down():
    def log(reward, *bleu):
        return [check(0.2, r, bleu_4=b) for r, b in zip((0.0, 0.2, reward), bleu, strict=True)]

    found = warnings(log(0.5, 0.04, 0.01, 0.019))
    assert list(found) == ["bleu"]
    assert "from 0.00 to 0.50" in found["bleu"]
    assert "from 0.0400 to 0.0190, below 0.5" in found["bleu"]
    assert warnings(log(0.5, 0.04, 0.01, 0.021)) == {}  # the last check counts
    assert warnings(log(-0.5, 0.04, 0.04, 0.01)) == {}
    assert warnings([check(0.2, 0.0), check(0.2, 0.5, bleu_4=0.01)]) == {}  # begun without BLEU


def test_reward_that_is_sentiment_alone():
    def log(first, last):
        return [check(0.2, 0.0, sentiment_reward=first), check(0.2, 0.0, sentiment_reward=last)]

    assert list(warnings(log(0.6, 0.96))) == ["sentiment"]
    assert warnings(log(0.6, 0.94)) == {}
    assert warnings(log(0.96, 0.97)) == {}  # a reward made of sentiment
    assert warnings(log(None, 0.97)) == {}  # as the log writes what is not defined
