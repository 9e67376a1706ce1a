"""Signs of reward hacking: measures against loops, and each warning by a log that calls for it alone."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import make_layout, random_replies

from crs_jax.rl.scoring import token_masks
from crs_jax.training.health import measures, monitors, warnings

LAYOUT = make_layout(words=4, items=6, act_items=3)
CALM = {
    "reward": 0.0, "kl": 1.0, "entropy/act": 3.0, "entropy/word": 2.0, "reply_length": 10.0, "ended": 1.0,
    "health/repetition": 0.1, "health/popularity": 0.5, "health/distinct": 0.8, "seconds": 1.0,
}  # fmt: skip


def test_measures_equal_loops():
    rng = np.random.default_rng(0)
    tokens, mask = random_replies(rng, LAYOUT, 12, 14)
    popularity = rng.normal(size=8).astype(np.float32)
    split = token_masks(jnp.asarray(tokens), jnp.asarray(mask), LAYOUT)
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
    split = token_masks(tokens, jnp.arange(5)[None] < jnp.ones((2, 1)), LAYOUT)
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


@pytest.mark.parametrize("late", [{"kl": 9.9}, {"ended": 0.91}])
def test_up_to_a_bound_nothing_is_warned_of(late):
    assert warnings([CALM] * 5 + [{**CALM, **late}] * 5) == {}


@pytest.mark.parametrize(("share", "bad"), [(0.57, True), (0.25, True), (0.55, False), (0.27, False)])
def test_the_share_that_recommends_is_watched_on_validation(share, bad):
    """There contexts and random numbers are the same at each check; iterations' own are few, and others each time."""
    check = {"validation/hr@10": 0.3, "validation/reward": 0.0, "validation/recommends": 0.41}
    log = [check, *[{**CALM, "recommends": 0.1}] * 5, *[{**CALM, "recommends": 0.9}] * 5]
    log.append({**check, "validation/recommends": share})
    found = {m.kind: m for m in monitors(log)}["recommends"]
    assert (found.before, found.now, found.bad) == (0.41, share, bad)
    assert found.text == (
        f"replies to validation contexts that recommend went from 41 to {100 * share:.0f} %, more than 15 points"
    )
    assert list(warnings(log)) == ["recommends"] * bad


def evaluation(bleu=0.05, interval=(-0.04, -0.01), perplexity=10.0, recommends=0.41, drift=None):
    """Sections of metrics.json: SFT's BLEU-4 is .05, its perplexity 10, it recommends in 41 % of its replies."""
    sft = {"bleu-4": 0.05, "perplexity": 10.0, "recommends": 0.41, "recommends-reference": 0.46}
    ppo = {**sft, "bleu-4": bleu, "perplexity": perplexity, "recommends": recommends}
    low, high = interval
    gap = {"value": bleu - 0.05, "low": low, "high": high}
    low, high = drift or (recommends - 0.46, recommends - 0.36)
    share = {"value": recommends - 0.41, "low": low, "high": high}
    return {"text": {"sft": sft, "ppo": ppo}, "paired": {"ppo-sft": {"text": {"bleu-4": gap, "recommends": share}}}}


@pytest.mark.parametrize(
    ("kind", "over", "within"),
    [
        ("test-recommends", {"recommends": 0.57}, {"recommends": 0.55}),
        ("test-recommends", {"recommends": 0.25}, {"recommends": 0.27}),
        (
            "test-recommends",
            {"recommends": 0.91, "drift": (0.001, 0.99)},
            {"recommends": 0.91, "drift": (-0.001, 0.99)},
        ),
        (
            "test-recommends",
            {"recommends": 0.11, "drift": (-0.6, -0.001)},
            {"recommends": 0.11, "drift": (-0.6, 0.001)},
        ),
        ("test-bleu", {"bleu": 0.039}, {"bleu": 0.041}),
        ("test-bleu", {"bleu": 0.01, "interval": (-0.08, -0.0001)}, {"bleu": 0.01, "interval": (-0.08, 0.0001)}),
        ("test-perplexity", {"perplexity": 12.6}, {"perplexity": 12.4}),
    ],
)
def test_the_evaluation_is_watched_on_both_sides_of_each_bound(kind, over, within):
    assert list(warnings([], evaluation(**over))) == [kind]
    assert warnings([], evaluation(**within)) == {}
    assert [m.kind for m in monitors([], evaluation())] == ["test-recommends", "test-bleu", "test-perplexity"]


def test_warnings_of_the_evaluation_say_what_they_rest_on():
    found = warnings([], evaluation(bleu=0.02, perplexity=15.0, recommends=0.91))
    assert found["test-recommends"].endswith("went from 41 to 91 %, more than 15 points; people: 46 %")
    assert "sampled (95 % of the difference: +0.45 .. +0.55)" in found["test-recommends"]
    assert "from 0.0500 to 0.0200, below 0.8 of it (95 % of the difference: -0.0400 .. -0.0100)" in found["test-bleu"]
    assert "from 10.00 to 15.00, above 1.25 times it" in found["test-perplexity"]


def test_log_and_evaluation_make_one_list():
    log = [CALM] * 5 + [{**CALM, "kl": 11.0}] * 5
    assert list(warnings(log, evaluation(recommends=0.91))) == ["kl", "test-recommends"]


def test_an_evaluation_of_one_policy_or_without_an_interval_is_no_reason_to_warn():
    alone = evaluation(recommends=0.91)
    del alone["text"]["ppo"]
    assert monitors([], alone) == []
    for unknown in ((None, None), (float("nan"), float("nan"))):  # as metrics.json has it, and as it is computed
        assert warnings([], evaluation(bleu=0.01, interval=unknown)) == {}


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
