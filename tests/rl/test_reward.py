"""The reward: weights, standardisation, clipping, where the heads are read, and what is paid where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policy import (
    make_layout,
    make_policy,
    plain_fits,
    plain_hidden,
    random_evidence,
    random_prompts,
    random_replies,
    unit,
    unpad,
)

from crs_jax.models.heads import SignalHeads
from crs_jax.rl.reward import (
    Normaliser,
    RewardModel,
    Scores,
    combine,
    fit_normaliser,
    members,
    predict,
    score,
    stack,
    with_formulas,
)
from crs_jax.rl.scoring import token_masks
from crs_jax.signals.registry import column
from crs_jax.training.advantages import token_rewards

NAN = float("nan")
LAYOUT = make_layout(words=11, items=5, act_items=3)
PLAIN = Normaliser(jnp.zeros(3), jnp.ones(3), jnp.float32(1.0))


def test_combine_by_hand():
    """Weights 2, 1, -1 (total 4). Without the second they are 3 and are scaled by 4/3; without any, nothing is left."""
    signals = jnp.array([[1.0, 3.0, 0.5], [1.0, NAN, 0.5], [NAN, NAN, 0.5], [NAN, NAN, NAN], [9.0, 9.0, -9.0]])
    got = combine(signals, jnp.array([2.0, 1.0, -1.0]), 5.0)
    np.testing.assert_allclose(got, [4.5, (2 - 0.5) * 4 / 3, -0.5 * 4, 0.0, 5.0], rtol=1e-6)
    assert float(combine(-signals[4:], jnp.array([2.0, 1.0, -1.0]), 5.0)[0]) == -5.0
    np.testing.assert_array_equal(combine(signals, jnp.zeros(3), 5.0), 0.0)
    np.testing.assert_array_equal(combine(signals[1:2], jnp.array([0.0, 1.0, 0.0]), 5.0), 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sets(st.integers(0, 2)), st.floats(0.5, 3.0))
def test_scores_equal_a_loop_and_telescope(seed, missing, clip):
    """Act and word part of a reply add up to the total; every part standardised, weighted and clipped as written."""
    rng = np.random.default_rng(seed)
    say, end = rng.normal(size=(2, 4, 3)).astype(np.float32)
    relevance = rng.normal(size=4).astype(np.float32)
    relevance[1] = NAN
    say[2, sorted(missing)] = end[2, sorted(missing)] = NAN
    weight = rng.normal(size=3)
    mean, std, total = rng.normal(size=3), rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2)
    normaliser = Normaliser(*(jnp.asarray(a, jnp.float32) for a in (mean, std, total)))
    both = jnp.asarray(say)[None], jnp.asarray(end)[None]
    got = score(
        *both, {"relevance": jnp.asarray(relevance)}, normaliser, jnp.asarray(weight), clip, 2.0
    )  # one alone has no spread

    def loop(signals):
        out = []
        for row, exact in zip(signals.astype(float), relevance, strict=True):
            values = [(x - m) / s for x, m, s in zip([row[0], exact, row[2]], mean, std, strict=True)]
            kept = [(x, w) for x, w in zip(values, weight, strict=True) if x == x]
            present = sum(abs(w) for _, w in kept)
            value = sum(x * w for x, w in kept) * sum(map(abs, weight)) / present / total if kept else 0.0
            out.append(min(max(value, -clip), clip))
        return out

    np.testing.assert_allclose(got.act_B, loop(say), atol=1e-4)
    np.testing.assert_allclose(got.total_B, loop(end), atol=1e-4)
    standard = (np.stack([end[:, 0], relevance, end[:, 2]], 1) - mean) / std
    np.testing.assert_allclose(got.signal_BS, standard, atol=1e-5)
    np.testing.assert_array_equal(got.spread_B, 0.0)
    tokens, mask = random_replies(rng, LAYOUT, 4, 8)
    paid = token_rewards(got, token_masks(tokens, mask, LAYOUT), *[jnp.zeros((4, 8))] * 2, 0.1, 0.1, 0.1, 0.0)
    np.testing.assert_allclose(paid.sum(-1), got.total_B, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("spread", "clip"), [(0.0, 1e9), (0.7, 1e9), (3.0, 1.5)])
def test_an_ensembles_score_is_the_mean_less_its_spread(learned, spread, clip):
    """Against NumPy on each member's total by a loop over replies; clipped last, so that the spread is of the whole."""
    rng = np.random.default_rng(6)
    J, B = 4, 6
    say, end = rng.normal(size=(2, J, B, 3)).astype(np.float32)
    relevance = rng.normal(size=(J, B) if learned else B).astype(np.float32)
    relevance[..., 2] = NAN
    weight, mean, std, scale = np.array([1.0, 0.5, -2.0]), np.array([0.1, 0.3, -0.2]), np.array([0.5, 2.0, 1.5]), 0.8
    normaliser = Normaliser(*(jnp.asarray(a, jnp.float32) for a in (mean, std, scale)))
    reads = (jnp.asarray(a) for a in (say, end))
    got = score(
        *reads, {"relevance": jnp.asarray(relevance)}, normaliser, jnp.asarray(weight, jnp.float32), clip, spread
    )

    def total(read_S, fit):
        values = (np.array([read_S[0], fit, read_S[2]], float) - mean) / std
        kept = np.isfinite(values)
        return values[kept] @ weight[kept] * np.abs(weight).sum() / np.abs(weight[kept]).sum() / scale

    fit_JB = np.broadcast_to(relevance, (J, B))
    act_JB, total_JB = (
        np.array([[total(read[j, b], fit_JB[j, b]) for b in range(B)] for j in range(J)]) for read in (say, end)
    )
    assert (np.abs(total_JB) > 1.5).any()
    for found_B, each_JB in ((got.act_B, act_JB), (got.total_B, total_JB)):
        expected_B = np.clip(np.mean(each_JB, 0) - spread * np.std(each_JB, 0), -clip, clip)
        np.testing.assert_allclose(found_B, expected_B, atol=1e-5)
    np.testing.assert_allclose(got.spread_B, np.std(total_JB, 0), atol=1e-5)
    signals_JBS = (np.stack([end[..., 0], fit_JB, end[..., 2]], -1) - mean) / std
    np.testing.assert_allclose(got.signal_BS, signals_JBS.mean(0), atol=1e-5)


def test_exact_relevance_and_members_that_agree_have_no_spread():
    rng = np.random.default_rng(7)
    reads, relevance = jnp.asarray(rng.normal(size=(3, 5, 3)), jnp.float32), jnp.asarray(rng.normal(size=5))
    alone = score(reads, reads, {"relevance": relevance}, PLAIN, jnp.array([0.0, 2.0, 0.0]), np.inf, 1.0)
    np.testing.assert_allclose(alone.total_B, 2.0 * np.asarray(relevance), rtol=1e-5)
    np.testing.assert_allclose(alone.spread_B, 0.0, atol=1e-6)
    same = jnp.broadcast_to(reads[:1], reads.shape)
    three, one = (score(r, r, {"relevance": relevance}, PLAIN, jnp.ones(3), 5.0, 1.0) for r in (same, reads[:1]))
    for found, expected in zip(three, one, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_keep_their_order():
    trees = [{"policy": n} for n in range(12)]
    assert members(stack(trees)) == trees
    assert list(stack(trees)) == [str(n) for n in range(12)]
    rebuilt = jax.tree.map(lambda n: n, stack(trees))  # keys come back sorted as text
    assert members(rebuilt) == trees
    assert stack(trees[3:4]) is trees[3]
    assert members(trees[3]) == [trees[3]]


def test_relevance_takes_its_own_column():
    signals = jnp.arange(6.0).reshape(2, 3)
    exact = np.asarray(with_formulas(signals, {"relevance": jnp.array([7.0, NAN])}))
    place = column("relevance")
    np.testing.assert_array_equal(exact[:, place], [7.0, NAN])
    np.testing.assert_array_equal(np.delete(exact, place, 1), np.delete(np.asarray(signals), place, 1))


def test_rewards_by_hand():
    """Scores 0.7 and 0.2 more (total 0.9), KL 0.1 a token at 0.5 and 2, an end that is missing costs 3."""
    i, say, end, pad = LAYOUT.item_offset, LAYOUT.say, LAYOUT.end, LAYOUT.pad
    tokens = np.array([[i + 1, say, 4, end, pad], [say, 4, 4, 4, 4], [i, i + 1, i + 2, pad, pad]])
    scores = Scores(jnp.full(3, 0.7), jnp.full(3, 0.9), jnp.zeros((3, 3)), jnp.zeros(3))
    split = token_masks(tokens, tokens != pad, LAYOUT)
    kl, of_kind = (jnp.where(tokens != pad, nats, 0.0) for nats in (0.1, 0.04))
    paid = token_rewards(scores, split, kl, of_kind, 0.5, 1.5, 2.0, 3.0)
    a, w = -0.5 * 0.06 - 1.5 * 0.04, -0.2
    expected = [
        [a, 0.7 + a, w, 0.2 + w, 0],
        [0.7 + a, w, w, w, 0.2 - 3 + w],
        [a, a, 0.9 - 3 + a, 0, 0],  # never said: all on the last token
    ]
    np.testing.assert_allclose(paid, expected, atol=1e-6)
    assert paid.dtype == jnp.float32


def test_normaliser_ignores_what_does_not_exist():
    rng = np.random.default_rng(0)
    signals = (rng.normal(size=(300, 3)) * [0.2, 3.0, 1.0] + [5.0, -1.0, 0.0]).astype(np.float32)
    signals[rng.random(300) < 0.3, 1] = NAN
    weight = jnp.array([1.0, 2.0, 0.5])
    got = fit_normaliser(jnp.asarray(signals), weight)
    kept = [column[~np.isnan(column)].astype(float) for column in signals.T]
    np.testing.assert_allclose(got.mean_S, [c.mean() for c in kept], atol=1e-5)
    np.testing.assert_allclose(got.std_S, [c.std() for c in kept], rtol=1e-5)
    totals = score(
        *[jnp.asarray(signals)[None]] * 2, {"relevance": jnp.asarray(signals[:, 1])}, got, weight, np.inf, 0.0
    ).total_B
    assert float(totals.std()) == pytest.approx(1.0, rel=1e-4)  # on the samples it was fitted on


def test_normaliser_of_what_does_not_vary():
    signals = jnp.array([[2.0, NAN, 1.0], [2.0, NAN, 1.0]])
    got = fit_normaliser(signals, jnp.ones(3))
    np.testing.assert_array_equal(got.std_S, 1.0)
    np.testing.assert_array_equal(got.mean_S, [2.0, 0.0, 1.0])
    assert float(got.total_std) == 1.0


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e5])
def test_normaliser_knows_what_varies_in_any_unit(unit):
    """Fault: an absolute bound, below which a reward in small units is lost and above which rounding is a signal."""
    rng = np.random.default_rng(3)
    signals = (unit * np.stack([rng.choice([0.0, 1.0], 511), np.full(511, 0.7), np.full(511, 37.3)], 1)).astype(
        np.float32
    )
    signals[rng.random(511) < 0.5, 1] += np.spacing(np.float32(0.7 * unit))
    got = fit_normaliser(jnp.asarray(signals), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(got.std_S, [signals[:, 0].std(), 1.0, 1.0], rtol=1e-5)
    assert float(got.mean_S[2]) == signals[0, 2]
    assert float(got.total_std) == pytest.approx(1.0, rel=1e-4)


def test_heads_are_read_at_say_and_at_the_last_token():
    """Fault: the score one slot off. Against hidden states of one reply a row, at the tokens themselves, and the
    fit of the act's new items."""
    rng = np.random.default_rng(1)
    model = RewardModel(make_policy(3, LAYOUT))
    model.heads.bias[...] = jnp.array([0.3, -0.2, 0.1])
    model.heads.kernel[...] = jnp.asarray(rng.normal(size=(16, 3)) / 4, jnp.float32)
    model.heads.feature_kernel[...] = jnp.asarray(rng.normal(size=(9, 3)), jnp.float32)
    prompt, prompt_mask = random_prompts(rng, LAYOUT, [5, 3], 5)
    tokens, mask = random_replies(rng, LAYOUT, 6, 8)
    tokens[5] = [LAYOUT.item_offset, *[LAYOUT.pad] * 7]  # never said: both heads at its last token
    mask[5] = np.arange(8) < 1
    grouped = tokens.reshape(2, 3, 8), mask.reshape(2, 3, 8)
    evidence = random_evidence(rng, LAYOUT, 2)
    before = evidence.named
    acting = next(b for b in (3, 4, 5) if tokens[b, 0] >= LAYOUT.item_offset)
    before[1, 0] = tokens[acting, 0] - LAYOUT.item_offset  # no proposal any more
    say, end, split = jax.jit(predict)(model, prompt, prompt_mask, *grouped, evidence)
    arrays = (model.heads.kernel, model.heads.bias, model.heads.feature_kernel)
    kernel, bias, feature_kernel = (np.asarray(a[...], float) for a in arrays)
    own = [row for row in unpad(prompt, prompt_mask) for _ in range(3)]
    replies = unpad(tokens, mask)
    hidden = plain_hidden(model.policy, [[*p, *r] for p, r in zip(own, replies, strict=True)])
    for b, reply in enumerate(replies):
        at = len(own[b]) + (reply.index(LAYOUT.say) if LAYOUT.say in reply else len(reply) - 1)
        rows = [t - LAYOUT.item_offset for t in reply[: at - len(own[b])] or reply if t >= LAYOUT.item_offset]
        rows = [n for n in rows if n not in before[b // 3]]
        one = [part[b // 3] for part in evidence[:8]]
        beside = plain_fits(model.policy, one, rows) @ feature_kernel + bias
        np.testing.assert_allclose(say[b], unit(hidden[b][at]) @ kernel + beside, atol=3e-5)
        np.testing.assert_allclose(end[b], unit(hidden[b][-1]) @ kernel + beside, atol=3e-5)
    np.testing.assert_array_equal(split.say_BR.sum(-1), [1, 1, 1, 1, 1, 0])


def test_signal_heads_start_at_zero():
    heads = SignalHeads(8)
    assert heads.kernel[...].shape == (8, 3)
    assert not np.asarray(heads(jnp.ones((2, 8)), jnp.ones((2, 9)))).any()
