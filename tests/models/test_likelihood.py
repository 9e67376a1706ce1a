"""Log-probabilities and entropies under the grammar, against NumPy loops; chunks against one go; gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import make_layout, make_policy, next_token, split

from crs_jax.models.likelihood import act_likelihood, in_chunks, likelihood, word_likelihood
from crs_jax.models.policy import MASKED, Logits, given_drawn

LAYOUT = make_layout(words=11, items=5, act_items=3)
ACTS = [(), (2,), (4, 0), (1, 3, 2)]


def test_of_a_hand_worked_distribution():
    """Masses 1, 2, 4 and a masked entry beside 1: probabilities 1/8, 1/4, 1/2, 0 and 1/8; entropy 1.75 bits."""
    main, odds = jnp.array([[0.0, np.log(2), np.log(4), MASKED]] * 4) + 30.0, jnp.log(jnp.array([[1 / 7]] * 4))
    main = jnp.where(jnp.arange(4) == 3, MASKED, main)  # an offset of the table is of no account
    logits = Logits(given_drawn(main, 1.0), odds)
    got = likelihood(logits, jnp.array([0, 1, 2, 4]))
    np.testing.assert_allclose(np.exp(got.logp), [1 / 8, 1 / 4, 1 / 2, 1 / 8], rtol=1e-5)
    np.testing.assert_allclose(got.entropy, 1.75 * np.log(2), rtol=1e-6)
    hot = likelihood(Logits(given_drawn(main, 2.0), odds / 2.0), jnp.array([2, 2, 2, 2]))  # 1, sqrt 2, 2, odds 7**-.5
    np.testing.assert_allclose(np.exp(hot.logp), 2 / (3 + 2**0.5) / (1 + 7**-0.5), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_likelihood_and_entropy_equal_a_loop(temperature):
    rng = np.random.default_rng(0)
    main, extra = rng.normal(0, 3, (4, 9)), rng.normal(0, 3, (4, 2))
    main[:, 5], extra[1, 1] = MASKED, MASKED
    for target in [0, 3, 8, 9]:
        drawn = Logits(given_drawn(jnp.asarray(main), temperature), jnp.asarray(extra) / temperature)
        got = likelihood(drawn, jnp.full(4, target))
        for b in range(4):
            table, odds = np.exp(main[b] / temperature), np.exp(extra[b] / temperature)
            p = np.concatenate([table / table.sum(), odds]) / (1 + odds.sum())
            assert float(got.logp[b]) == pytest.approx(np.log(p[target]), abs=1e-5)
            assert float(got.entropy[b]) == pytest.approx(-sum(x * np.log(x) for x in p if x > 0), abs=1e-5)


@pytest.fixture(scope="module")
def policy():
    return make_policy(0, LAYOUT)


@pytest.fixture(scope="module")
def hidden_STD():
    """One row an act, 16 slots."""
    return np.random.default_rng(1).normal(size=(len(ACTS), 17, 16)).astype(np.float32)


def used(acts, slots):
    rows = np.array([[*act, *[-1] * (LAYOUT.act_items - len(act))] for act in acts])
    return np.broadcast_to(rows[:, None], (len(acts), slots, LAYOUT.act_items))


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_act_probabilities_of_all_targets(policy, hidden_STD, temperature):
    """Slot t scores target t (items, then say) from the same hidden state: they add up to 1 and equal the loop's."""
    T = LAYOUT.num_items + 1
    hidden = np.broadcast_to(hidden_STD[:, :1], (len(ACTS), T, 16))
    target = np.broadcast_to(np.arange(T), (len(ACTS), T))
    got = act_likelihood(
        policy, policy.tables(), policy.acting(hidden, None), used(ACTS, T), target, None, temperature, chunk=4
    )  # fmt: skip
    for s, act in enumerate(ACTS):
        p = next_token(policy, hidden_STD[s, 0], [LAYOUT.item_offset + n for n in act], temperature)
        assert sum(np.exp(np.asarray(got.logp[s], float))) == pytest.approx(1.0, abs=1e-5)
        expected = [p.get(LAYOUT.item_offset + n, 0.0) for n in range(LAYOUT.num_items)] + [p[LAYOUT.say]]
        np.testing.assert_allclose(np.exp(got.logp[s]), expected, atol=1e-6)
        np.testing.assert_allclose(got.entropy[s], -sum(x * np.log(x) for x in p.values()), atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_word_probabilities_of_all_targets(policy, hidden_STD, temperature):
    targets = [*range(LAYOUT.num_words), LAYOUT.end, *(LAYOUT.item_offset + m for m in range(LAYOUT.act_items))]
    T = len(targets)
    hidden = np.broadcast_to(hidden_STD[:, :1], (len(ACTS), T, 16))
    target = np.broadcast_to(targets, (len(ACTS), T))
    got = word_likelihood(policy, policy.tables(), hidden, used(ACTS, T), target, temperature, chunk=4)
    for s, act in enumerate(ACTS):
        own = [LAYOUT.item_offset + n for n in act]
        p = next_token(policy, hidden_STD[s, 0], [*own, LAYOUT.say], temperature)
        assert sum(np.exp(np.asarray(got.logp[s], float))) == pytest.approx(1.0, abs=1e-5)
        tokens = [*range(LAYOUT.num_words), LAYOUT.end, *own]
        expected = [p[token] for token in tokens] + [0.0] * (LAYOUT.act_items - len(own))
        np.testing.assert_allclose(np.exp(got.logp[s]), expected, atol=1e-6)
        np.testing.assert_allclose(got.entropy[s], -sum(x * np.log(x) for x in p.values()), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 17, 64])
def test_chunks_equal_one_go(chunk):
    """Values at every slot, and their number, whether or not the chunk divides T."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 17, 8)).astype(np.float32)
    target = rng.integers(0, 8, (3, 17))

    def one(logits, target):
        return likelihood(Logits(logits[..., :6], logits[..., 6:]), target)

    for got, whole in zip(in_chunks(one, chunk, logits, target), one(logits, target), strict=True):
        assert got.shape == (3, 17)
        np.testing.assert_allclose(got, whole, rtol=1e-6)


def test_gradient_in_chunks_equals_the_plain_computation(policy, hidden_STD):
    """Gradient of parameters and hidden states of mixed log-probs and entropies; the plain one has no chunk or mask."""
    graph, params, frozen = split(policy)
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(2, 1, 17))
    tokens = rng.choice([*range(LAYOUT.num_words), LAYOUT.end, LAYOUT.item_offset + 1], (1, 17))  # act (4, 0)
    hidden = hidden_STD[2:3]

    def chunked(params, hidden):
        model = nnx.merge(graph, params, frozen)
        got = word_likelihood(model, model.tables(), hidden, used(ACTS[2:3], 17), tokens, 1.3, chunk=4)
        return (weight[0] * got.logp + weight[1] * got.entropy).sum()

    def plain(params, hidden):
        odds, own = params["decisions"], jnp.array([4, 0])
        state = hidden / jnp.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
        content = state @ params["query"]["hidden_kernel"] @ frozen["items"]["content"][own].T
        beside = jax.nn.log_softmax((state @ params["items"]["residual"][own].T + content) / 1.3)
        beside += ((state @ odds["kernel"])[..., 2:] + odds["own_bias"]) / 1.3
        end = ((state @ odds["kernel"])[..., 1:2] + odds["end_bias"][1]) / 1.3
        words = jax.nn.log_softmax(hidden @ params["words"][: LAYOUT.num_words].T / 1.3)
        logits = jnp.concatenate([words, end, beside], -1)
        logp = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
        place = {
            token: i
            for i, token in enumerate(
                [*range(LAYOUT.num_words), LAYOUT.end, LAYOUT.item_offset, LAYOUT.item_offset + 1]
            )
        }
        chosen = jnp.array([[place[int(token)] for token in row] for row in tokens])
        chosen = jnp.take_along_axis(logp, chosen[..., None], -1)[..., 0]
        return (weight[0] * chosen - weight[1] * (jnp.exp(logp) * logp).sum(-1)).sum()

    got, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(params, hidden) for f in (chunked, plain))
    assert np.abs(expected[0]["items"]["residual"]).max() > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)
