"""Lists of acts: the gradient against all lists of a small catalogue, the surrogate against plain loops, the draws."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from crs_jax.models.likelihood import FirstToken
from crs_jax.rl import all_acts
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.plackett_luce import discounts, draw, gain, surrogate

ITEMS, PLACES = 4, 3
LISTS = list(itertools.permutations(range(ITEMS), PLACES))
BEYOND = 1  # items that are not among the likeliest: the acts' probabilities do not sum to 1
LOGITS = np.array([0.9, -0.4, 0.3, -1.1, 0.2, 0.5])  # of four items, one beyond, and `<|say|>`
VALUES = np.array([0.7, 1.6, -0.8, 0.4, -0.3])  # of the four and of `<|say|>`


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - scipy.special.logsumexp(logits)


def acts_of(logits):
    """Log-probabilities of the likeliest items, given that one is proposed, and of both kinds."""
    of_all = jax.nn.logsumexp(logits[..., :-1], -1, keepdims=True)
    kinds = jax.nn.log_softmax(jnp.concatenate([of_all, logits[..., -1:]], -1))
    return FirstToken((logits[..., :-1] - of_all)[..., : logits.shape[-1] - 1 - BEYOND], kinds)


def known(logits_CN, value_A) -> Acts:
    """With values as advantages; that of proposing is the items' mean, in which one beyond counts as 0."""
    first = acts_of(logits_CN)
    value_CA = jnp.broadcast_to(value_A[..., :-1], first.item_CN.shape)
    mean_C = (jnp.exp(first.item_CN) * value_CA).sum(-1)
    kinds = jnp.stack([mean_C, jnp.broadcast_to(value_A[..., -1], mean_C.shape)], -1)
    return Acts(jnp.zeros(value_CA.shape, int), jnp.exp(first.item_CN), *first, value_CA, kinds)


def probability(ranked, item_logits) -> float:
    """Of a list under Plackett-Luce."""
    out, left = 1.0, list(range(len(item_logits)))
    for item in ranked:
        out *= math.exp(item_logits[item]) / sum(math.exp(item_logits[j]) for j in left)
        left.remove(item)
    return out


def objective(logits: np.ndarray, proposes: float) -> float:
    """Expected value of the first act, and of what stands behind the first place of all lists."""
    p = np.exp(log_softmax(logits))
    first = sum(p[:ITEMS] * VALUES[:ITEMS]) + p[-1] * VALUES[-1]
    later = sum(
        probability(ranked, logits[:ITEMS])
        * sum(VALUES[j] / math.log2(1 + k) for k, j in enumerate(ranked, 1) if k > 1)
        for ranked in LISTS
    )
    return first + proposes * later


def in_pairs(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of lists, `[576, 2, K]`, and their probabilities: every outcome of drawing two."""
    pairs = np.array(list(itertools.product(LISTS, repeat=2)))
    one = {ranked: probability(ranked, logits[:ITEMS]) for ranked in LISTS}
    return pairs, np.array([one[a] * one[b] for a, b in itertools.product(LISTS, repeat=2)])


@jax.jit
def gradients(logits_N, value_A, place_CLK):
    """Descents `[2, C, N]` of the surrogate at the policy that drew: of the whole list, and of what follows it.

    By the logits of all acts, each list's or pair's own.
    """

    def total(logits_CN, whole):
        first, old = acts_of(logits_CN), known(logits_N[None], value_A[None])
        first_C = all_acts.surrogate(first, old, 0.2) if whole else 0.0
        return (first_C + surrogate(first.item_CN, old, place_CLK, 0.2)).sum()

    logits_CN = jnp.tile(logits_N, (len(place_CLK), 1))
    return [-jax.grad(total)(logits_CN, whole) for whole in (True, False)]


def test_gradient_is_that_of_all_lists():
    """In expectation over all that can be drawn, exactly."""
    with jax.enable_x64(True):
        pairs, weight = in_pairs(LOGITS)
        assert weight.sum() == pytest.approx(1, abs=1e-12)
        whole, later = map(np.asarray, gradients(*map(jnp.asarray, (LOGITS, VALUES, pairs))))
    proposes, step = np.exp(log_softmax(LOGITS))[:-1].sum(), 1e-6
    expected = [
        (objective(LOGITS + e, proposes) - objective(LOGITS - e, proposes)) / (2 * step)
        for e in step * np.eye(len(LOGITS))
    ]
    np.testing.assert_allclose((weight[:, None] * whole).sum(0), expected, atol=1e-8)
    assert np.abs(later[:, ITEMS:]).max() < 1e-12  # lists move neither what lies beyond the acts nor `<|say|>`
    assert np.abs((weight[:, None] * later).sum(0)).max() > 0.05


def test_gradient_leads_to_the_optimum_of_single_acts():
    """Values are scores less the KL penalty: it vanishes at p_ref exp(score / kl), and points there from elsewhere."""
    rng, kl = np.random.default_rng(5), 0.3
    with jax.enable_x64(True):
        for spread in (0.0, 0.1, 1.0, 3.0):
            score, reference, error = rng.normal(size=ITEMS), rng.normal(size=ITEMS), spread * rng.normal(size=ITEMS)
            logits = np.append(reference + score / kl + error, [-60.0, -60.0])
            value = np.append(score - kl * (logits[:ITEMS] - reference), 0.0)
            pairs, weight = in_pairs(logits)
            whole = np.asarray(gradients(*map(jnp.asarray, (logits, value, pairs)))[0])
            if spread:
                assert -(weight[:, None] * whole).sum(0)[:ITEMS] @ error > 1e-3 * spread**2
            else:
                assert np.abs(whole).max() < 1e-12


def test_gradient_varies_less_than_the_score_functions():
    """PG-Rank with the mean of the other lists as its baseline, from the same lists of 5 of 32 items."""
    rng = np.random.default_rng(2)
    draws, L, K, items = 300, 8, 5, 32
    logits, value = rng.normal(0, 2, items), rng.normal(size=items)
    logits, value = np.append(logits, [-9.0, -9.0]), np.append(value, 0.0)  # something beyond, and `<|say|>`
    logp = acts_of(jnp.asarray(logits, jnp.float32)).item_CN
    place = draw(jax.random.key(0), jnp.tile(logp, (draws, 1)), L, K)
    found = np.asarray(gradients(jnp.asarray(logits), jnp.asarray(value), place)[0])[:, :items]
    place = np.asarray(place)
    p, total = np.tile(np.exp(logits[:items]), (draws, L, 1)), np.zeros((draws, L, items))
    for k in range(K):
        total += np.eye(items)[place[..., k]] - p / p.sum(-1, keepdims=True)
        np.put_along_axis(p, place[..., k : k + 1], 0.0, -1)
    worth = (value[place] / np.log2(2 + np.arange(K))).sum(-1)
    plain = ((worth - worth.mean(1, keepdims=True))[..., None] * total).sum(1) / (L - 1)
    error = np.sqrt((plain.var(0) + found.var(0)) / draws)
    assert (np.abs(plain.mean(0) - found.mean(0)) < 5 * error + 1e-4).all()
    assert found.var(0).sum() < 0.15 * plain.var(0).sum()


def test_surrogate_equals_a_loop():
    """Away from the policy that drew, so that clips are active; one, three and as many places as items."""
    rng = np.random.default_rng(1)
    C, L, clip, clipped = 3, 4, 0.2, 0
    old, new = (np.array([log_softmax(x) for x in rng.normal(0, 1, (C, ITEMS))]) for _ in range(2))
    new, kinds = old + 0.3 * (new - old), np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))
    value = rng.normal(size=(C, ITEMS))
    for places in (1, 3, ITEMS):
        rank = np.array([[rng.permutation(ITEMS)[:places] for _ in range(L)] for _ in range(C)])
        arrays = (jnp.asarray(a, jnp.float32) for a in (np.exp(old), old, kinds, value, kinds))
        acts = Acts(jnp.zeros((C, ITEMS), int), *arrays)
        found = jax.jit(surrogate, static_argnums=3)(jnp.asarray(new, jnp.float32), acts, jnp.asarray(rank), clip)
        for c in range(C):

            def loss(ratio, advantage):
                nonlocal clipped
                clipped += not 1 - clip <= ratio <= 1 + clip
                return -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)

            means = []
            for ranked in rank[c]:
                row = []
                for k in range(places):
                    left = [j for j in range(ITEMS) if j not in ranked[:k]]
                    p = np.exp(old[c, left]) / np.exp(old[c, left]).sum()
                    row.append(sum(p * value[c, left]) / math.log2(2 + k))
                means.append(row)
            after = [[sum(row[k + 1 :]) for k in range(places)] for row in means]
            total = 0.0
            for number, ranked in enumerate(rank[c]):
                for k, item in enumerate(ranked):
                    left = [j for j in range(ITEMS) if j not in ranked[:k]]
                    p, q = (np.exp(a[c, left]) / np.exp(a[c, left]).sum() for a in (old, new))
                    ratio = dict(zip(left, q / p, strict=True))
                    others = [after[m][k] for m in range(L) if m != number]
                    total += loss(ratio[item], after[number][k] - sum(others) / (L - 1)) / L
                    if k > 0:
                        mean = sum(p * value[c, left])
                        for weight, j in zip(p, left, strict=True):
                            total += weight * loss(ratio[j], (value[c, j] - mean) / math.log2(2 + k)) / L
            total *= np.exp(kinds[c, 0])
            assert float(found[c]) == pytest.approx(total, abs=2e-6), (places, c)
        assert places > 1 or not np.asarray(found).any()  # a list of one item is PPO's single act
    assert clipped > 20


def test_gradient_is_finite_where_the_policy_has_collapsed():
    logits, even = jnp.array([[0.0, -60.0, -90.0, -90.0]]), jnp.log(jnp.full((1, 2), 0.5))
    logp = jax.nn.log_softmax(logits)
    acts = Acts(jnp.zeros((1, 4), int), jnp.exp(logp), logp, even, jnp.array([[1.0, -2.0, 3.0, 0.0]]), even)
    place = jnp.array([[[0, 1, 2, 3], [0, 2, 3, 1]]])
    grad = jax.jit(jax.grad(lambda x: surrogate(jax.nn.log_softmax(x), acts, place, 0.2).sum()))(logits)
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0.1


def test_draws_follow_plackett_luce():
    logp = acts_of(jnp.asarray(LOGITS, jnp.float32)).item_CN
    rank = np.asarray(draw(jax.random.key(3), logp[None], 20_000, PLACES))[0]
    count = np.array([(rank == np.array(ranked)).all(1).sum() for ranked in LISTS])
    expected = np.array([probability(ranked, LOGITS[:ITEMS]) for ranked in LISTS]) * len(rank)
    assert count.sum() == len(rank) == 20_000
    assert scipy.stats.chisquare(count, expected).pvalue > 0.01
    assert draw(jax.random.key(3), logp[None], 2, 9).shape == (1, 2, ITEMS)


def test_discounts_and_gain_by_hand():
    np.testing.assert_allclose(discounts(3), [1, 1 / math.log2(3), 0.5], rtol=1e-6)
    found = gain(jnp.array([[1.0, 2.0, -4.0]]), jnp.array([[[2, 0, 1], [1, 0, 2]]]))
    second, total = 1 / math.log2(3), 1.5 + 1 / math.log2(3)
    np.testing.assert_allclose(found, [[(-4 + second + 1) / total, (2 + second - 2) / total]], rtol=1e-5)
