"""Likelihoods of replies packed behind their prompt, against one reply a row; the split of replies into parts.

Each of these faults of other PPO code breaks a test here: reference log-probs at another temperature than the policy's,
the score one slot off the last token, the end token never trained.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import (
    make_layout,
    make_policy,
    pad,
    plain_hidden,
    plain_likelihood,
    plain_wishes,
    random_evidence,
    random_prompts,
    random_replies,
    split,
    unpad,
)

from configs import common
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.rl import ppo
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import actor_pass, policy_likelihood
from crs_jax.rl.sampling import Replies
from crs_jax.rl.scoring import reply_likelihood, token_masks, tree_hidden

LAYOUT = make_layout(words=11, items=5, act_items=3, unused=(4,))
C, G, R, P = 3, 4, 10, 9


@pytest.fixture(scope="module")
def policy():
    return make_policy(0, LAYOUT)


@pytest.fixture(scope="module")
def batch():
    """Prompts, and replies `[C, G, R]`, with their masks."""
    rng = np.random.default_rng(0)
    tokens, mask = random_replies(rng, LAYOUT, C * G, R)
    return *random_prompts(rng, LAYOUT, [9, 2, 5], P), tokens.reshape(C, G, R), mask.reshape(C, G, R)


@pytest.fixture(scope="module")
def evidence():
    """Features of each context."""
    return random_evidence(np.random.default_rng(1), LAYOUT, C)


def rows_of(batch):
    """Prompt and reply of each of the C * G replies, as lists."""
    prompt, prompt_mask, tokens, mask = batch
    own = [row for row in unpad(prompt, prompt_mask) for _ in range(G)]
    return own, unpad(tokens.reshape(C * G, R), mask.reshape(C * G, R))


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("act_chunk", "word_chunk"))
def score(graph, params, frozen, batch, evidence, temperature, **chunks):
    policy = nnx.merge(graph, params, frozen)
    tables = policy.tables()
    hidden = tree_hidden(policy, tables, *batch)
    flat = (a.reshape(C * G, R) for a in batch[2:])
    before = hidden.before.reshape(C * G, R, -1)
    item_query = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), policy.item_query(evidence))
    return hidden, reply_likelihood(policy, tables, before, *flat, temperature, item_query, **chunks)


def plain_scores(policy, batch, evidence, temperature):
    """Log-probabilities and entropies `[C * G, R]` by loops."""
    split_features = [item_query for item_query in plain_wishes(policy, evidence) for _ in range(G)]
    return [pad(rows, R) for rows in plain_likelihood(policy, *rows_of(batch), temperature, split_features)]


def test_batch_has_all_kinds(batch):
    _, replies = rows_of(batch)
    assert {reply.index(LAYOUT.say) for reply in replies} == {0, 1, 2, 3}
    assert {reply[-1] == LAYOUT.end for reply in replies} == {True, False}
    assert any(token >= LAYOUT.item_offset for reply in replies for token in reply[reply.index(LAYOUT.say) :])


def test_tree_of_replies_equals_one_a_row(policy, batch, evidence):
    hidden, _ = score(*split(policy), batch, evidence, 1.0)
    own, replies = rows_of(batch)
    alone = plain_hidden(policy, [[*p, *r] for p, r in zip(own, replies, strict=True)])
    for b, reply in enumerate(replies):
        n, start = len(reply), len(own[b])
        np.testing.assert_allclose(hidden.before[b // G, b % G, :n], alone[b][start - 1 : -1], atol=3e-5)
        np.testing.assert_allclose(hidden.at[b // G, b % G, :n], alone[b][start:], atol=3e-5)
    assert np.isfinite(hidden.at).all()  # on padding too: 0 times NaN is NaN


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("chunks", [{}, {"act_chunk": 3, "word_chunk": 4}], ids=["whole", "chunks"])
def test_likelihood_equals_plain_loops(policy, batch, evidence, temperature, chunks):
    _, got = score(*split(policy), batch, evidence, temperature, **chunks)
    logp, entropy = plain_scores(policy, batch, evidence, temperature)
    np.testing.assert_allclose(got.logp_BR, logp, atol=3e-5)
    np.testing.assert_allclose(got.entropy_BR, entropy, atol=3e-5)
    np.testing.assert_array_equal(np.asarray(got.logp_BR)[logp == 0], 0.0)


@pytest.mark.parametrize("temperature", common.settings().flat()["ppo.temperature"].bounds)
def test_likelihood_and_gradient_at_the_bounds_of_temperature(policy, batch, evidence, temperature):
    """Errors grow as the logits do, by 1 / temperature; PPO also needs the gradient."""
    graph, params, frozen = split(policy)

    def loss(params):
        got = score(graph, params, frozen, batch, evidence, temperature)[1]
        return (got.logp_BR + got.entropy_BR).sum(), got

    (_, got), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    logp, entropy = plain_scores(policy, batch, evidence, temperature)
    np.testing.assert_allclose(got.logp_BR, logp, atol=3e-5 / min(temperature, 1))
    np.testing.assert_allclose(got.entropy_BR, entropy, atol=3e-5 / min(temperature, 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_gradient_equals_that_of_one_reply_a_row(policy, batch, evidence):
    """Weighted log-probs and entropies: the tree, in chunks, against G = 1 and no chunks."""
    graph, params, frozen = split(policy)
    weight_LBR = np.random.default_rng(1).normal(size=(2, C * G, R))
    prompt, prompt_mask, tokens, mask = batch
    single = (
        np.repeat(prompt, G, 0),
        np.repeat(prompt_mask, G, 0),
        tokens.reshape(C * G, 1, R),
        mask.reshape(C * G, 1, R),
    )

    def loss(params, arrays, chunk):
        model = nnx.merge(graph, params, frozen)
        tables = model.tables()
        before = tree_hidden(model, tables, *arrays).before.reshape(C * G, R, -1)
        flat = (a.reshape(C * G, R) for a in arrays[2:])
        item_query = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), model.item_query(evidence))
        got = reply_likelihood(model, tables, before, *flat, 1.3, item_query, chunk, chunk)
        return (weight_LBR[0] * got.logp_BR + weight_LBR[1] * got.entropy_BR).sum()

    grad = jax.jit(jax.grad(loss), static_argnums=2)
    tree, plain = grad(params, batch, 3), grad(params, single, 1000)

    def near(path, got, expected):
        bound = 2e-5 * max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(got, expected, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(near, tree, plain)
    assert np.abs(tree["query"]["text_kernel"]).max() > 0.1
    assert np.abs(tree["decisions"]["end_bias"]).max() > 0.1  # fault: the end token never trained
    assert not np.any(np.asarray(tree["words"])[LAYOUT.num_words :])
    assert not np.any(np.asarray(tree["items"]["residual"])[LAYOUT.num_items :])


def test_padding_content_does_not_matter(policy, batch, evidence):
    prompt, prompt_mask, tokens, mask = batch
    other = np.where(prompt_mask, prompt, 3), prompt_mask, np.where(mask, tokens, 7), mask
    one, two = (score(*split(policy), arrays, evidence, 1.0)[1] for arrays in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_policy_and_reference_have_one_temperature(policy, batch, evidence, temperature):
    """Fault: reference log-probs at the sampling temperature and the policy's at 1, so that KL is not 0 at step 0."""
    actor = ActorCritic(policy, "shared")
    contexts = Contexts(*batch[:2], evidence._replace(named_mean=np.zeros_like(evidence.text)))
    learned, values, _ = jax.jit(actor_pass)(actor, contexts, *batch[2:], temperature)
    graph, params, frozen = split(policy)
    replies = Replies(*(jnp.asarray(a).reshape(C * G, R) for a in batch[2:]), jnp.zeros((C * G, R)))
    reference = jax.jit(policy_likelihood, static_argnums=0)(graph, params, frozen, contexts, replies, temperature)
    np.testing.assert_allclose(ppo.kl_k1(learned.logp_BR, reference.logp_BR), 0.0, atol=1e-6)
    expected = plain_scores(policy, batch, evidence, temperature)[0]
    np.testing.assert_allclose(reference.logp_BR, expected, atol=3e-5)
    np.testing.assert_array_equal(values, 0.0)  # a fresh head


def test_values_move_the_policy_only_when_shared(policy):
    hidden = jnp.ones((2, 16))
    for value, critic in (("shared", None), ("detached", None), ("separate", policy)):
        actor = ActorCritic(policy, value, critic)
        actor.head.kernel[...] = jnp.arange(16.0)
        moved = jax.grad(lambda h, actor=actor: actor.values(h).sum())(hidden)
        expected = np.zeros(16) if value == "detached" else np.arange(16.0)
        np.testing.assert_array_equal(moved, np.tile(expected, (2, 1)))
        assert float(actor.values(hidden)[0]) == 120.0
    for value, critic in (("shared", policy), ("separate", None), ("both", None)):
        with pytest.raises(ValueError, match="value"):
            ActorCritic(policy, value, critic)


def test_parts_by_hand():
    """Acts of two and no items, an ended and a cut reply, one that never says, one word that is the act's own item."""
    i, say, end, pad_token = LAYOUT.item_offset, LAYOUT.say, LAYOUT.end, LAYOUT.pad
    tokens = np.array(
        [
            [i + 4, i + 1, say, 3, i + 4, end, pad_token],
            [say, 1, 2, 3, 5, 6, 7],
            [i + 2, i + 0, i + 3, pad_token, pad_token, pad_token, pad_token],
        ]
    )
    mask = tokens != pad_token
    got = jax.tree.map(np.asarray, token_masks(tokens, mask, LAYOUT))
    one = np.ones(7, int)
    np.testing.assert_array_equal(got.act_BR, [[1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(got.word_BR, [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1], 0 * one])
    np.testing.assert_array_equal(got.items_BM, [[4, 1, -1], [-1, -1, -1], [2, 0, 3]])
    np.testing.assert_array_equal(got.say_BR, [[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], 0 * one])
    np.testing.assert_array_equal(got.last_BR, [[0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(got.ended_B, [True, False, False])
