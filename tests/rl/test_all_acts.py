"""Sums over acts: against samples of the same surrogate, by hand, as a control variate, and the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from crs_jax.models.likelihood import FirstToken
from crs_jax.rl import ppo
from crs_jax.rl.all_acts import (
    Acts,
    Known,
    at,
    choose,
    cross_entropy,
    joint_advantage,
    known_advantages,
    of_sampled,
    surrogate,
    tilted,
    variance,
)

ROWS = jnp.arange(4)[None]


def first_token(logits: np.ndarray) -> FirstToken:
    """Of logits `[C, A + 1]` of items and, last, of no proposal."""
    item, odds = jax.nn.log_softmax(logits[:, :-1]), logits[:, -1:]
    return FirstToken(item, jax.nn.log_sigmoid(jnp.concatenate([-odds, odds], 1)))


def test_joint_is_a_distribution():
    first = first_token(jnp.array([[0.3, -1.0, 2.0, -0.4], [0.0, 0.0, 0.0, 40.0]]))
    np.testing.assert_allclose(np.exp(first.joint).sum(1), 1.0, rtol=1e-6)
    assert float(first.joint[1, 0]) == pytest.approx(-40 - np.log(3), rel=1e-5)  # not lost beside a sure `<|say|>`


def test_known_advantages_by_hand():
    """Items of scores 1, 0, 2 less .5 x log-ratio, about the mean over those that are there; both kinds less 2 x it."""
    p, reference = np.array([0.5, 0.2, 0.1]), np.array([0.25, 0.2, 0.2])
    kind, kind_reference = np.array([0.6, 0.4]), np.array([0.3, 0.7])
    rows = jnp.array([[7, 2, 5]])
    got, known = known_advantages(
        rows, jnp.asarray(p)[None],
        FirstToken(jnp.log(p)[None], jnp.log(kind)[None]),
        FirstToken(jnp.log(reference)[None], jnp.log(kind_reference)[None]),
        jnp.array([[1.0, 0.0, 2.0]]), jnp.array([0.4]), jnp.float32(0.5), jnp.float32(2.0),
    )  # fmt: skip
    values = [1.0 - 0.5 * np.log(2), 0.0, 2.0 + 0.5 * np.log(2)]
    mean = np.dot(p, values) / 0.8
    np.testing.assert_allclose(got.advantage_CA[0], np.array(values) - mean, rtol=1e-5)
    kinds = [mean - 2 * np.log(0.6 / 0.3), 0.4 - 2 * np.log(0.4 / 0.7)]
    np.testing.assert_allclose(got.advantage_C2[0], np.array(kinds) - np.dot(kind, kinds), rtol=1e-5)
    np.testing.assert_allclose(known.mean_C2[0], [mean, 0.4], rtol=1e-5)
    assert (got.row_CA.tolist(), known.score_CA.tolist()) == ([[7, 2, 5]], [[1.0, 0.0, 2.0]])


def random_acts(rng: np.random.Generator, logits: np.ndarray) -> Acts:
    """Advantages of mean 0, as they are where all items are listed."""
    first = first_token(jnp.asarray(logits, jnp.float32))
    of_items, of_kinds = rng.normal(size=(1, 4)), rng.normal(size=(1, 2))
    of_items -= (np.exp(first.item_CN) * of_items).sum(1, keepdims=True)
    of_kinds -= (np.exp(first.kind_C2) * of_kinds).sum(1, keepdims=True)
    return Acts(
        ROWS, jnp.exp(first.item_CN), *first, jnp.asarray(of_items, jnp.float32), jnp.asarray(of_kinds, jnp.float32)
    )


def test_gradient_is_that_of_sampled_tokens():
    """At the policy that sampled: the score function's, with the token's whole advantage, exactly."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.0, (1, 5))
    acts = random_acts(rng, logits)
    got = jax.grad(lambda x: surrogate(first_token(x), acts, 0.2).sum())(jnp.asarray(logits))
    advantage, p = joint_advantage(acts)[0], np.exp(first_token(jnp.asarray(logits)).joint)[0]
    each = jax.jacobian(lambda x: first_token(x).joint[0])(jnp.asarray(logits))[:, 0]
    np.testing.assert_allclose(got[0], -(p[:, None] * advantage[:, None] * each).sum(0), atol=1e-6)
    assert np.abs(got).max() > 0.05
    assert float(variance(acts)) == pytest.approx(float((p * np.square(advantage)).sum()), rel=1e-5)


def test_surrogate_is_the_mean_of_the_sampled_ones():
    """Of items and of kinds, each with a clip of its own, away from the policy that sampled."""
    rng = np.random.default_rng(0)
    old, new = (rng.normal(0, s, (1, 5)) for s in (1.0, 1.3))
    acts, p = random_acts(rng, old), np.exp(first_token(jnp.asarray(old)).joint)[0]
    drawn = rng.choice(5, 400_000, p=p / p.sum())
    proposes = drawn < 4

    def sampled(logits):
        first = first_token(logits)
        kind, item = np.where(proposes, 0, 1), drawn[proposes]
        of_kind = ppo.policy_loss(first.kind_C2[0, kind], acts.kind_C2[0, kind], acts.advantage_C2[0, kind], 0.2)[0]
        of_item = ppo.policy_loss(first.item_CN[0, item], acts.logp_CA[0, item], acts.advantage_CA[0, item], 0.2)[0]
        return (of_kind.sum() + of_item.sum()) / len(drawn)

    whole = lambda x: surrogate(first_token(x), acts, 0.2).sum()  # noqa: E731
    (a, ga), (b, gb) = (jax.value_and_grad(f)(jnp.asarray(new, jnp.float32)) for f in (whole, sampled))
    assert float(a) == pytest.approx(float(b), abs=0.005)
    np.testing.assert_allclose(ga, gb, atol=0.005)
    assert np.abs(ga).max() > 0.05


def test_of_sampled_finds_acts_and_knows_the_mean_of_others():
    acts = Acts(jnp.array([[4, 1], [2, 0]]), *[jnp.zeros((2, 2))] * 5)
    known = Known(jnp.array([[0.5, -1.0], [3.0, 2.0]]), jnp.array([[0.25, -0.5], [-1.0, 4.0]]))
    got, listed = of_sampled(acts, known, jnp.array([[1, 4, 7, -1], [-1, 2, 4, 0]]))
    np.testing.assert_array_equal(got, [[-1.0, 0.5, 0.25, -0.5], [4.0, 3.0, -1.0, 2.0]])
    np.testing.assert_array_equal(listed, [[True, True, False, True], [True, True, False, True]])


def test_at_takes_rows():
    first = first_token(jnp.arange(10.0).reshape(2, 5))
    some = at(first, jnp.array([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(some.item_CN, [first.item_CN[0, [3, 0]], first.item_CN[1, [1, 1]]])
    assert some.kind_C2 is first.kind_C2


@pytest.mark.parametrize(("count", "drawn"), [(3, 1), (4, 2), (6, 2), (9, 3)])
def test_chosen_items_stand_for_all(count, drawn):
    """Weighted sums over them have the expectation over all items; the likeliest are always there."""
    rng = np.random.default_rng(2)
    logp = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 1.5, 6)))
    p, value, draws = np.exp(logp), rng.normal(size=6), 40_000
    row, weight = choose(jnp.tile(logp, (draws, 1)), count, drawn, jax.random.key(1))
    assert row.shape == weight.shape == (draws, min(count, 6))
    np.testing.assert_allclose(weight.sum(1), 1.0, rtol=1e-5)
    likeliest = 6 if count >= 6 else count - drawn
    np.testing.assert_array_equal(row[:, :likeliest], np.broadcast_to(np.argsort(-p)[:likeliest], (draws, likeliest)))
    if count < 6:
        assert not np.isin(row[:, likeliest:], np.argsort(-p)[:likeliest]).any()
    sums = (np.asarray(weight) * value[row]).sum(1)
    assert sums.mean() == pytest.approx((p * value).sum(), abs=5 * sums.std() / np.sqrt(draws) + 1e-6)
    counts = np.bincount(np.asarray(row).ravel(), minlength=6) / draws
    rest = np.argsort(-p)[likeliest:]
    np.testing.assert_allclose(counts[rest], drawn * p[rest] / p[rest].sum() if count < 6 else 1.0, atol=0.02)


@jax.enable_x64(True)
def test_tilted_is_the_optimum_of_the_penalised_reward():
    """Against an optimizer of free logits; an item may stand for several like it."""
    rng, item_kl, kind_kl = np.random.default_rng(6), 0.4, 0.9
    reference = 0.5 * rng.normal(size=(1, 5))
    score, empty = rng.normal(size=(1, 4)), rng.normal(size=1)
    reference[:, 3], score[:, 3] = reference[:, 2], score[:, 2]
    first = first_token(jnp.asarray(reference))
    p = np.exp(np.asarray(first.item_CN, float))
    found = tilted(first, jnp.ones((1, 4)), jnp.asarray(score), jnp.asarray(empty), item_kl, kind_kl)

    def earned(x):
        new = first_token(x[None])
        q, kinds = jnp.exp(new.item_CN)[0], jnp.exp(new.kind_C2)[0]
        of_items = (q * (score[0] - item_kl * (new.item_CN - first.item_CN)[0])).sum()
        return -(kinds[0] * of_items + kinds[1] * empty[0] - kind_kl * (kinds * (new.kind_C2 - first.kind_C2)[0]).sum())

    best = scipy.optimize.minimize(jax.jit(earned), np.zeros(5), jac=jax.jit(jax.grad(earned)), tol=1e-9).x
    expected = first_token(jnp.asarray(best)[None])
    np.testing.assert_allclose(found[0], np.exp(expected.item_CN), atol=1e-4)
    np.testing.assert_allclose(found[1], np.exp(expected.kind_C2), atol=1e-4)
    assert np.abs(found[0] - p).max() > 0.1

    def distance(x):
        return cross_entropy(first_token(x[None]), found).sum()

    assert np.abs(jax.grad(distance)(jnp.asarray(best))).max() < 1e-4  # the least cross-entropy is at the optimum
    assert np.abs(jax.grad(distance)(jnp.asarray(reference[0]))).max() > 0.05

    rows, mass = jnp.arange(3)[None], jnp.array([[1.0, 1.0, 2.0]])  # the third stands for the fourth, its like
    merged = tilted(at(first, rows), mass, jnp.asarray(score[:, :3]), jnp.asarray(empty), item_kl, kind_kl)
    np.testing.assert_allclose(merged[0][0], [*found[0][0, :2], 2 * found[0][0, 2]], atol=1e-9)
    np.testing.assert_allclose(merged[1], found[1], atol=1e-9)
