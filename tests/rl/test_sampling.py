"""The sampler: its log-probs are the model's, its draws follow them, and every reply obeys the grammar.

Each of these faults of other PPO code breaks a test here: the sampler's key rebuilt from a constant, the end token
never trained (left out of the mask).
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_policy import (
    HUGE,
    make_layout,
    make_policy,
    next_token,
    pad,
    plain_hidden,
    plain_likelihood,
    plain_wishes,
    random_evidence,
    random_params,
    random_prompts,
    split,
    unpad,
)

from configs import common
from crs_jax.features.context import ContextFeatures
from crs_jax.models.policy import MASKED, Logits
from crs_jax.rl.sampling import Replies, causal, keys_of, positions, sample, sample_logits

LAYOUT = make_layout(words=11, items=5, act_items=2, unused=(4,))
R = 12
LENGTHS, P = [9, 2, 5], 9


@functools.partial(jax.jit, static_argnums=0, static_argnames=("group", "reply_tokens", "block", "greedy"))
def draw(graph, params, frozen, contexts, key, temperature, **static):
    policy = nnx.merge(graph, params, frozen)
    prompts, mask, *evidence = contexts
    return sample(policy, prompts, mask, key, features=ContextFeatures(*evidence), temperature=temperature, **static)


@pytest.fixture(scope="module")
def policy():
    return make_policy(0, LAYOUT)


@pytest.fixture(scope="module")
def contexts():
    """Prompts, their mask, and the evidence of each."""
    rng = np.random.default_rng(3)
    return *random_prompts(rng, LAYOUT, LENGTHS, P), *random_evidence(rng, LAYOUT, len(LENGTHS))[:8]


def draw_from(policy, contexts, seed=0, temperature=1.0, group=4, reply_tokens=R, block=5, greedy=False) -> Replies:
    static = {"group": group, "reply_tokens": reply_tokens, "block": block, "greedy": greedy}
    return draw(*split(policy), contexts, jax.random.key(seed), temperature, **static)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_sampler_equals_trainer(policy, contexts, temperature, group):
    """Log-probs as recorded against one row a reply: ragged prompts, early ends, a block that cuts R unevenly."""
    ended, cut, acts = 0, 0, set()
    own = [row for row in unpad(*contexts[:2]) for _ in range(group)]
    split_features = [item_query for item_query in plain_wishes(policy, contexts[2:]) for _ in range(group)]
    for seed in range(24 // group):
        replies = draw_from(policy, contexts, seed, temperature, group)
        rows = unpad(replies.tokens_BR, replies.mask_BR)
        expected = pad(plain_likelihood(policy, own, rows, temperature, split_features)[0], R)
        np.testing.assert_allclose(replies.logp_BR, expected, atol=2e-5)
        ended += sum(row[-1] == LAYOUT.end and len(row) < R for row in rows)
        cut += sum(row[-1] != LAYOUT.end for row in rows)
        acts |= {row.index(LAYOUT.say) for row in rows}
    assert ended > 2
    assert cut > 0
    assert len(acts) > 1


@pytest.mark.parametrize("temperature", common.settings().flat()["ppo.temperature"].bounds)
def test_sampler_equals_trainer_at_the_bounds(policy, contexts, temperature):
    """Errors grow as the logits do, by 1 / temperature."""
    own = [row for row in unpad(*contexts[:2]) for _ in range(4)]
    split_features = [item_query for item_query in plain_wishes(policy, contexts[2:]) for _ in range(4)]
    replies = draw_from(policy, contexts, 0, temperature)
    rows = unpad(replies.tokens_BR, replies.mask_BR)
    expected = pad(plain_likelihood(policy, own, rows, temperature, split_features)[0], R)
    np.testing.assert_allclose(replies.logp_BR, expected, atol=2e-5 / min(temperature, 1))


def test_blocks_change_nothing(policy, contexts):
    one, other = (draw_from(policy, contexts, block=block) for block in (5, R))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_noise_is_fresh(policy, contexts):
    """Fault: the key rebuilt from a constant. Same key, same draw; another key, or another reply, another."""
    one, same, other = (draw_from(policy, contexts, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (np.asarray(one.tokens_BR) != np.asarray(other.tokens_BR)).any(-1).sum() > len(LENGTHS) * 3
    assert len(np.unique(one.tokens_BR, axis=0)) > len(LENGTHS) * 3  # some are short, and drawn twice by chance


def test_a_key_a_reply_draws_the_same_in_any_batch(policy, contexts):
    """Two of the replies, in another order, are those that they are among all."""
    keys = keys_of(jax.random.key(1), jnp.arange(len(LENGTHS)))
    static = {"group": 1, "reply_tokens": R, "block": 5, "greedy": False}
    whole = draw(*split(policy), contexts, keys, 1.0, **static)
    order = np.array([2, 0])
    some = draw(*split(policy), tuple(a[order] for a in contexts), keys[order], 1.0, **static)
    np.testing.assert_array_equal(some.tokens_BR, np.asarray(whole.tokens_BR)[order])
    np.testing.assert_allclose(some.logp_BR, np.asarray(whole.logp_BR)[order], atol=1e-5)
    assert len(np.unique(whole.tokens_BR, axis=0)) == len(LENGTHS)


def test_greedy_takes_the_mode(policy, contexts):
    """Of the words, the likeliest; of an act's slot, the best item if all items together are likelier than say."""
    rng = np.random.default_rng(5)
    many = 4 * LENGTHS
    contexts = *random_prompts(rng, LAYOUT, many, P), *random_evidence(rng, LAYOUT, len(many))[:8]
    replies = draw_from(policy, contexts, group=1, block=R, greedy=True)
    split_features = plain_wishes(policy, contexts[2:])
    split_choices = 0
    for c, (prompt, reply) in enumerate(
        zip(unpad(*contexts[:2]), unpad(replies.tokens_BR, replies.mask_BR), strict=True)
    ):
        hidden = plain_hidden(policy, [[*prompt, *reply]])[0]
        for r, token in enumerate(reply):
            p = next_token(policy, hidden[len(prompt) - 1 + r], reply[:r], item_query=split_features[c])
            say = p.pop(LAYOUT.say, None)
            best = max(p, key=p.get, default=None)
            if say is not None:
                split_choices += best is not None and sum(p.values()) > say > p[best]
                best = best if sum(p.values()) > say else LAYOUT.say
            assert token == best
            chosen = {**p, LAYOUT.say: say}[token]
            assert float(replies.logp_BR[c, r]) == pytest.approx(np.log(chosen), abs=2e-5)
    assert split_choices  # at some slot say is the likeliest token, and yet an item is proposed


def chi_square(counts, probabilities, total):
    """p-value of counts by token, the rare ones together."""
    tokens = sorted(probabilities, key=probabilities.get)
    expected = np.array([probabilities[t] * total for t in tokens])
    observed = np.array([counts.get(t, 0) for t in tokens])
    rare = max(int(np.searchsorted(expected, 5)), 1)
    merge = [np.array([a[:rare].sum(), *a[rare:]]) for a in (observed, expected)]
    return stats.chisquare(*merge).pvalue


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_draws_follow_the_model(policy, contexts, temperature):
    """Chi-square of the first four slots given what stands before them: act, say, words, own items among them."""
    one = tuple(a[2:] for a in contexts)  # a left-padded one
    replies = draw_from(policy, one, 3, temperature, group=6000, reply_tokens=4, block=4)
    counts = collections.defaultdict(collections.Counter)
    for row in unpad(replies.tokens_BR, replies.mask_BR):
        for r, token in enumerate(row):
            counts[tuple(row[:r])][token] += 1
    own, item_query = unpad(*one[:2])[0], plain_wishes(policy, one[2:])[0]
    begun = sorted(begin for begin, counter in counts.items() if counter.total() >= 400)
    hidden = dict(zip(begun, plain_hidden(policy, [[*own, *begin] for begin in begun]), strict=True))
    found = {}
    for begin in begun:
        p = next_token(policy, hidden[begin][-1], list(begin), temperature, item_query)
        assert set(counts[begin]) <= set(p)
        found[begin] = chi_square(counts[begin], p, counts[begin].total())
    assert () in found
    assert any(LAYOUT.say in begin for begin in begun)
    assert any(begin and begin[-1] >= LAYOUT.item_offset for begin in begun)
    assert min(found.values()) > 1e-3 / len(found), found


def test_sample_logits_is_exact():
    """Three blocks of which one has no legal row, a masked row in each, a masked extra entry, uneven masses."""
    rng = np.random.default_rng(4)
    main, extra = rng.normal(0, 1, 384), np.array([-2.2, MASKED, -3.4])
    main[rng.random(384) < 0.9] = MASKED
    main[128:256] = MASKED
    main[[0, 1, 2, 256, 257, 300]] = [1.0, 1.5, 0.5, 1.2, 0.8, 3.0]
    main = np.where(main == MASKED, MASKED, main - np.log(np.exp(main).sum()))
    legal = np.flatnonzero(np.concatenate([main, extra]) > MASKED / 2)
    B = 20_000
    both = np.concatenate([main, extra])[legal]
    mass = np.exp(both) / np.exp(both).sum()

    def assert_drawn(index):
        assert set(index) <= set(legal)
        counts = np.array([(index == i).sum() for i in legal])
        assert counts.sum() == len(index)
        assert stats.chisquare(counts, mass * len(index)).pvalue > 1e-3

    logits = Logits(
        jnp.broadcast_to(jnp.asarray(main, jnp.float32), (B, 384)),
        jnp.broadcast_to(jnp.asarray(extra, jnp.float32), (B, 3)),
    )
    run = jax.jit(sample_logits)
    index, logp = (np.concatenate(a) for a in zip(*(run(logits, jax.random.key(k)) for k in range(3)), strict=True))
    assert_drawn(index)
    one = Logits(logits.main[:1], logits.extra[:1])  # a row a key: no noise may serve both steps of a draw
    keys = jax.random.split(jax.random.key(9), B)
    alone = np.asarray(jax.jit(jax.vmap(lambda key: sample_logits(one, key)[0][0]))(keys))
    assert_drawn(alone)
    np.testing.assert_array_equal(run(logits, keys)[0], alone)  # a key a row
    np.testing.assert_allclose(logp, np.log(mass)[np.searchsorted(legal, index)], atol=1e-5)
    best, best_logp = sample_logits(Logits(logits.main[:2], logits.extra[:2]), jax.random.key(0), greedy=True)
    assert best.tolist() == [300, 300]
    np.testing.assert_allclose(best_logp, np.log(mass.max()), atol=1e-5)


def test_rows_of_a_batch_are_independent():
    """The draws of two rows of equal logits agree as often as chance has it."""
    logits = Logits(jnp.zeros((8000, 128)), jnp.zeros((8000, 1)))
    index = np.asarray(sample_logits(logits, jax.random.key(5))[0])
    agree = (index[:4000] == index[4000:]).mean()
    assert abs(agree - 1 / 129) < 5 * (1 / 129 / 4000) ** 0.5


def assert_legal(tokens, mask, layout):
    """The grammar as a machine of two states, over one reply."""
    length = int(mask.sum())
    assert mask[:length].all()  # a prefix
    assert (tokens[length:] == layout.pad).all()  # nothing but pad after the end
    act, said, ended = [], False, False
    for token in map(int, tokens[:length]):
        assert not ended
        row = token - layout.item_offset
        if not said and token == layout.say:
            said = True
        elif not said:
            assert 0 <= row < layout.num_items  # inside the catalogue
            assert row not in act
            act.append(row)
            assert len(act) <= layout.act_items
        elif token == layout.end:
            ended = True
        elif row >= 0:
            assert row in act  # the words name what the act proposes, and nothing else
        else:
            assert token < layout.num_words
            assert token not in layout.unused
    assert ended or length == len(tokens)
    return act, ended


@settings(max_examples=60, deadline=None)
@given(
    weights=st.integers(0, 2**31),
    noise=st.sampled_from([0.02, 0.3, 2.0]),
    temperature=st.floats(0.2, 4.0),
    seed=st.integers(0, 2**31),
)
def test_every_reply_obeys_the_grammar(policy, contexts, weights, noise, temperature, seed):
    """Whatever the weights, though the tables' padding and the other control tokens have huge embeddings."""
    graph, params, frozen = split(policy)
    params = random_params(params, LAYOUT, weights, noise, huge_controls=True)
    assert np.abs(params["words"][LAYOUT.num_words :]).max() > HUGE
    static = {"group": 4, "reply_tokens": R, "block": 5, "greedy": False}
    replies = draw(graph, params, frozen, contexts, jax.random.key(seed), temperature, **static)
    for tokens, mask, logp in zip(*map(np.asarray, replies), strict=True):
        assert_legal(tokens, mask, LAYOUT)
        assert (logp[mask] <= 1e-5).all()
        np.testing.assert_array_equal(logp[~mask], 0.0)


def test_the_end_token_is_a_real_one(policy, contexts):
    """Fault: a mask 'not pad' where pad is the end token. The end is drawn, masked in, and has a log-prob."""
    replies = draw_from(policy, contexts, 2)
    end = np.asarray(replies.tokens_BR) == LAYOUT.end
    assert end.any()
    assert np.asarray(replies.mask_BR)[end].all()
    assert (np.asarray(replies.logp_BR)[end] < 0).all()


def test_positions_and_causal_masks():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(positions(mask), [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]])
    sees = np.asarray(causal(mask))
    for b, t, s in np.ndindex(2, 5, 5):
        assert sees[b, t, s] == (s <= t and mask[b, s])
