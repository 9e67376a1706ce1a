"""PPO's mathematics against plain loops, rlax and numbers worked by hand.

Each of these faults of other PPO code breaks a test here: rewards cast to int, k3 in the reward, the score one slot off
the last token, entropy and KL averaged over padding, whitening per device (`test_whitening_over_eight_devices`).
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waits import HANGS

from crs_jax.rl import ppo

FEW = settings(max_examples=25, deadline=None)
gae = jax.jit(ppo.gae)
NAN = float("nan")


def prefix_mask(lengths, width):
    return np.arange(width) < np.asarray(lengths)[:, None]


@st.composite
def ragged(draw):
    """(rng, mask) of one of a few shapes (each compiles once) and any lengths, an empty row among them."""
    B, R = draw(st.sampled_from([(1, 1), (3, 2), (4, 7)]))
    lengths = draw(st.lists(st.integers(0, R), min_size=B, max_size=B))
    return np.random.default_rng(draw(st.integers(0, 2**31))), prefix_mask(lengths, R)


def loop_gae(reward, value, length, discount, lam):
    """Schulman et al. 2016, eq. 16, as the double sum it is: no recursion to get wrong in the same way."""
    delta = [
        reward[t] + (discount * value[t + 1] if t + 1 < length else 0.0) - value[t] for t in range(length)
    ]  # fmt: skip
    return [sum((discount * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]


@FEW
@given(ragged(), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_sum_that_defines_it(case, discount, lam):
    rng, mask = case
    reward, value = rng.normal(size=(2, *mask.shape)).astype(np.float32)
    for array in (reward, value):
        array[~mask] = NAN  # what stands on padding must not leak
    advantage, target = gae(reward, value, mask, discount, lam)
    for b, length in enumerate(mask.sum(-1)):
        expected = loop_gae(reward[b].astype(float), value[b].astype(float), length, discount, lam)
        np.testing.assert_allclose(advantage[b, :length], expected, atol=1e-5)
        np.testing.assert_allclose(target[b, :length], expected + value[b, :length], atol=1e-5)
    np.testing.assert_array_equal(advantage[~mask], 0.0)
    np.testing.assert_array_equal(target[~mask], 0.0)


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.97, 1.0), (1.0, 0.0)])
def test_gae_equals_rlax(rlax, discount, lam):
    rng = np.random.default_rng(0)
    mask = prefix_mask([9, 1, 4, 6], 9)
    reward, value = rng.normal(size=(2, 4, 9)).astype(np.float32)
    advantage, _ = gae(reward, value, mask, discount, lam)
    for b, length in enumerate(mask.sum(-1)):
        values = jnp.append(value[b, :length], 0.0)  # a reply ends: nothing follows
        discounts = jnp.full(length, discount)
        expected = rlax.truncated_generalized_advantage_estimation(reward[b, :length], discounts, lam, values)
        np.testing.assert_allclose(advantage[b, :length], expected, atol=1e-5)


def test_gae_by_hand():
    """Rewards 0, 0, 1; values 0.5, 0.4, 0.2; discount 1, lambda 0.5: deltas -0.1, -0.2, 0.8."""
    advantage, target = gae(jnp.array([[0, 0, 1.0, 9]]), jnp.array([[0.5, 0.4, 0.2, 9]]), prefix_mask([3], 4), 1.0, 0.5)
    np.testing.assert_allclose(advantage, [[0.0, 0.2, 0.8, 0.0]], atol=1e-6)
    np.testing.assert_allclose(target, [[0.5, 0.6, 1.0, 0.0]], atol=1e-6)


@FEW
@given(ragged(), st.booleans(), st.floats(0.01, 100), st.floats(-50, 50))
def test_whitening_equals_numpy_over_real_tokens(case, shift_mean, scale, offset):
    rng, mask = case
    x = (scale * rng.normal(size=mask.shape) + offset).astype(np.float32)
    real = x[mask].astype(float)
    x[~mask] = NAN
    white = np.asarray(ppo.whiten(x, mask, shift_mean))
    np.testing.assert_array_equal(white[~mask], 0.0)
    if real.size:
        expected = (real - real.mean()) / np.sqrt(real.var() + 1e-8) + (0.0 if shift_mean else real.mean())
        np.testing.assert_allclose(white[mask], expected, atol=2e-4 + 1e-4 * abs(offset) / max(real.std(), 1e-4))


def test_whitened_have_mean_0_and_variance_1():
    rng = np.random.default_rng(1)
    mask = prefix_mask([5, 0, 30, 12], 30)
    x = rng.gamma(2.0, 3.0, (4, 30)).astype(np.float32)
    white = np.asarray(ppo.whiten(x, mask))[mask]
    assert abs(white.mean()) < 1e-5
    assert abs(white.std() - 1) < 1e-5
    kept = np.asarray(ppo.whiten(x, mask, shift_mean=False))[mask]
    assert abs(kept.mean() / x[mask].mean() - 1) < 1e-5


@pytest.mark.parametrize("value", [3.7, -37.3, 1000.1, 1e6, 0.0])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_what_does_not_vary_has_no_deviation(value, shift_mean):
    """The mean of equal numbers rounds, and so do sums that are equal; neither is a deviation from a mean."""
    mask = prefix_mask([7, 1, 0, 6], 7)
    x = np.where(mask, value, NAN).astype(np.float32)
    mean = 0.0 if shift_mean else np.float32(value)
    np.testing.assert_allclose(np.asarray(ppo.whiten(x, mask, shift_mean))[mask], mean, rtol=1e-6)
    x[1, 0] += 3 * np.spacing(np.abs(x[1, 0]))
    np.testing.assert_allclose(np.asarray(ppo.whiten(x, mask, shift_mean))[mask], mean, rtol=1e-6)
    assert float(ppo.masked_variance(x, mask)) <= np.square(3 * np.spacing(np.float32(abs(value))))
    assert float(ppo.explained_variance(jnp.zeros(x.shape), x, mask)) == 0.0


def test_whitening_over_eight_devices():
    """Fault: whitening per device. Rows lie on 8 devices, each with a mean of its own; one device must agree."""
    code = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from crs_jax.rl import ppo
rng = np.random.default_rng(0)
x = (rng.normal(size=(16, 6)) + 10 * np.arange(16)[:, None]).astype(np.float32)
mask = np.arange(6) < rng.integers(0, 7, 16)[:, None]
sharding = NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec("d"))
run = jax.jit(lambda x, mask: (ppo.whiten(x, mask), ppo.masked_mean(x, mask), ppo.masked_variance(x, mask)))
cut = run(jax.device_put(x, sharding), jax.device_put(mask, sharding))
print(json.dumps({
    "devices": len(cut[0].sharding.device_set), "x": x.tolist(), "mask": mask.tolist(),
    "cut": [np.asarray(a).tolist() for a in cut], "one": [np.asarray(a).tolist() for a in run(x, mask)],
}))
"""
    root = str(pathlib.Path(__file__).resolve().parents[2])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    x, mask = np.array(found["x"]), np.array(found["mask"])
    real = x[mask]
    for white, mean, variance in (found["cut"], found["one"]):
        np.testing.assert_allclose(np.array(white)[mask], (real - real.mean()) / real.std(), atol=1e-5)
        np.testing.assert_allclose([mean, variance], [real.mean(), real.var()], rtol=1e-5)
    np.testing.assert_allclose(found["cut"][0], found["one"][0], atol=1e-6)


def test_means_are_over_real_tokens_of_the_whole_batch():
    """Fault: entropy and KL averaged over padding. Nor is it a mean of the rows' means: (1 + 2 + 3 + 10) / 4."""
    x, mask = jnp.array([[1.0, 2.0, 3.0], [10.0, NAN, jnp.inf]]), prefix_mask([3, 1], 3)
    assert float(ppo.masked_sum(x, mask)) == 16.0
    assert float(ppo.masked_mean(x, mask)) == 4.0
    assert float(ppo.masked_variance(x, mask)) == pytest.approx((9 + 4 + 1 + 36) / 4)
    assert float(ppo.masked_mean(x, jnp.zeros_like(mask))) == 0.0
    assert float(ppo.masked_variance(x, jnp.zeros_like(mask))) == 0.0


@st.composite
def replies(draw):
    """(length, place of say or None) of each of 1 to 4 replies of up to 6 tokens."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return [(length, draw(st.one_of(st.none(), st.integers(0, length - 1)))) for length in lengths]


@FEW
@given(replies(), st.integers(0, 2**31))
def test_rewards_fall_on_say_and_on_the_last_token(rows, seed):
    """Fault: the score one slot off the last token."""
    act, word = np.random.default_rng(seed).normal(size=(2, len(rows))).astype(np.float32)
    say, last = np.zeros((2, len(rows), 6), bool)
    expected = np.zeros((len(rows), 6))
    for b, (length, place) in enumerate(rows):
        last[b, length - 1] = True
        if place is not None:
            say[b, place] = True
        expected[b, length - 1 if place is None else place] += act[b]
        expected[b, length - 1] += word[b]
    placed = ppo.place_rewards(act, word, say, last)
    np.testing.assert_allclose(placed, expected, atol=1e-6)
    np.testing.assert_allclose(placed.sum(-1), act + word, atol=1e-6)


def test_rewards_keep_their_fractions():
    """Fault: rewards scattered into an integer array, so that 0.7 became 0 and -1.9 became -1."""
    say, last = prefix_mask([1, 0], 3), np.array([[0, 0, 1], [1, 0, 0]], bool)
    placed = ppo.place_rewards(jnp.array([0.7, 0.25]), jnp.array([-1.9, 0.5]), say, last)
    assert placed.dtype == jnp.float32
    np.testing.assert_allclose(placed, [[0.7, 0, -1.9], [0.75, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [int, bool])
def test_integers_are_refused_by_name(dtype):
    good, bad = jnp.ones(2), np.ones(2, dtype)
    grid, mask = jnp.ones((2, 3)), np.ones((2, 3), bool)
    for name, call in {
        "act_score_B": lambda: ppo.place_rewards(bad, good, mask, mask),
        "word_score_B": lambda: ppo.place_rewards(good, bad, mask, mask),
        "reward_BR": lambda: ppo.gae(grid.astype(dtype), grid, mask, 1.0, 1.0),
        "value_BR": lambda: ppo.gae(grid, grid.astype(dtype), mask, 1.0, 1.0),
        "x": lambda: ppo.whiten(grid.astype(dtype), mask),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name} is .*expected a floating type"):
            call()


def test_leave_one_out_by_hand():
    """Each score less the mean of the two others; alone, a score stays."""
    got = ppo.leave_one_out(jnp.array([[1.0, 2.0, 6.0], [0.7, 0.7, 0.7]]))
    np.testing.assert_allclose(got, [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(ppo.leave_one_out(jnp.array([[0.7], [-1.9]])), np.float32([[0.7], [-1.9]]))


def test_policy_loss_by_hand():
    """Ratios 1.5, 1.5, 0.5, 0.5 and 1.1, clip 0.2: the worse of the two, as a loss."""
    logp = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5, 1.1])) - 3.0
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0, 1.0])
    loss, clipped = ppo.policy_loss(logp, jnp.full(5, -3.0), advantage, 0.2)
    np.testing.assert_allclose(loss, [-2.4, 3.0, -1.0, 1.6, -1.1], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [True, False, False, True, False])


def test_policy_loss_and_gradient_equal_rlax(rlax):
    rng = np.random.default_rng(2)
    logp, old, advantage = rng.normal(0, 0.4, (3, 64)).astype(np.float32)

    def ours(logp):
        return ppo.policy_loss(logp, old, advantage, 0.2)[0].mean()

    def theirs(logp):
        return rlax.clipped_surrogate_pg_loss(jnp.exp(logp - old), advantage, 0.2)

    for got, expected in zip(jax.value_and_grad(ours)(logp), jax.value_and_grad(theirs)(logp), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
    assert (np.asarray(jax.grad(ours)(logp)) == 0).any()  # some are clipped


def test_value_loss_by_hand():
    """Old value 1, clip 0.2. Value 2 against 3: plain 1, near 1.2 gives 1.8^2. Against 1: plain 1, near 0.2^2."""
    loss, clipped = ppo.value_loss(jnp.array([2.0, 2.0, 1.1]), jnp.ones(3), jnp.array([3.0, 1.0, 0.0]), 0.2)
    np.testing.assert_allclose(loss, [0.5 * 1.8**2, 0.5, 0.5 * 1.1**2], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [True, False, False])


def test_kl_by_hand():
    """pi 1/2, reference 1/4: d = log 2, k1 = log 2, k3 = 1/2 - 1 + log 2; the other way -log 2 and 2 - 1 - log 2."""
    logp, reference = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(ppo.kl_k1(logp, reference), [np.log(2), -np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(ppo.kl_k3(logp, reference), [np.log(2) - 0.5, 1 - np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(ppo.approximate_kl(logp, reference), [1 - np.log(2), np.log(2) - 0.5], rtol=1e-5)


def test_kl_estimators_are_unbiased():
    """Under pi, k1 and k3 both have the mean KL(pi || reference), and approximate_kl under old has KL(old || new)."""
    rng = np.random.default_rng(3)
    pi, reference = rng.dirichlet(np.ones(6), 2)
    logp, other = jnp.log(pi), jnp.log(reference)
    exact = float(np.sum(pi * np.log(pi / reference)))
    for estimate in (ppo.kl_k1(logp, other), ppo.kl_k3(logp, other), ppo.approximate_kl(other, logp)):
        assert float((pi * estimate).sum()) == pytest.approx(exact, rel=1e-5)


@FEW
@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=4, max_size=4))
def test_k3_is_not_negative(pairs):
    logp, reference = jnp.array(pairs).T
    assert (ppo.kl_k3(logp, reference) >= 0).all()
    assert (ppo.kl_k3(logp, logp) == 0).all()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 0.064)),  # 10 % above
        (5.4, 0.1 * (1 - 0.1 * 0.064)),
        (60.0, 0.1 * (1 + 0.2 * 0.064)),  # clipped at 20 %
        (0.0, 0.1 * (1 - 0.2 * 0.064)),
    ],
)
def test_adaptive_coefficient_by_hand(kl, expected):
    """Coefficient 0.1, target 6 nats, 64 of 1000 replies."""
    got = ppo.adapt_kl_coefficient(jnp.float32(0.1), jnp.float32(kl), 6.0, 64, 1000.0)
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_explained_variance():
    """Targets 0, 2, 4 (variance 8/3); errors 0, 0, 3 (variance 2)."""
    mask = prefix_mask([3], 4)
    target, value = jnp.array([[0.0, 2.0, 4.0, NAN]]), jnp.array([[0.0, 2.0, 1.0, NAN]])
    assert float(ppo.explained_variance(value, target, mask)) == pytest.approx(1 - 2 / (8 / 3))
    assert float(ppo.explained_variance(target, target, mask)) == 1.0
    assert float(ppo.explained_variance(jnp.zeros((1, 4)), target, mask)) == 0.0
    assert float(ppo.explained_variance(value, jnp.ones((1, 4)), mask)) == 0.0
