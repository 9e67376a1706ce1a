"""What a context asks for, against loops over the items named, and what moves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import FACETS, make_layout, make_policy, next_token, plain_wishes, random_evidence, split

from crs_jax.features.context import ContextFeatures
from crs_jax.models.policy import add_at
from crs_jax.models.query import KINDS, MATCHES, Query, ablated

LAYOUT = make_layout(words=11, items=9, act_items=2)


@pytest.fixture(scope="module")
def policy():
    return make_policy(0, LAYOUT)


@pytest.fixture(scope="module")
def evidence():
    return random_evidence(np.random.default_rng(0), LAYOUT, 6)


def test_wish_equals_a_loop(policy, evidence):
    got = policy.item_query(evidence)
    for c, (vector, content, _, state) in enumerate(plain_wishes(policy, evidence)):
        np.testing.assert_allclose(got.vector[c], vector, atol=2e-5)
        np.testing.assert_allclose(got.content[c], content, atol=2e-5)
        np.testing.assert_allclose(got.state[c], state, atol=1e-6)
    np.testing.assert_array_equal(got.vector[0], 0.0)  # nothing is known of the first
    np.testing.assert_array_equal(got.content[0, :-1], 0.0)  # but its popularity


def test_leading_axes_are_the_same_numbers(policy, evidence):
    flat = policy.item_query(evidence)
    folded = policy.item_query(jax.tree.map(lambda a: np.reshape(a, (2, 3, -1)), evidence))
    for a, b in zip(flat, folded, strict=True):
        np.testing.assert_allclose(np.reshape(b, a.shape), a, atol=1e-6)


def test_logits_of_acts_equal_a_loop(policy, evidence):
    """Contents and single items' numbers reach the items' logits, how far the dialogue is that of say."""
    hidden_CD = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    item_query, items = policy.item_query(evidence), policy.tables()
    used = np.full((6, 2), -1, np.int32)
    used[4, 0] = 3
    logits = policy.act_logits(policy.acting(hidden_CD, item_query), items, used, item_query.beside)
    p = jax.nn.softmax(jnp.concatenate([logits.main[:, : LAYOUT.num_items], logits.extra], -1), -1)
    for c, plain in enumerate(plain_wishes(policy, evidence)):
        expected = next_token(policy, hidden_CD[c], [LAYOUT.item_offset + 3] if c == 4 else [], item_query=plain)
        for n in range(LAYOUT.num_items):
            assert float(p[c, n]) == pytest.approx(expected.get(LAYOUT.item_offset + n, 0.0), abs=1e-5)
        assert float(p[c, -1]) == pytest.approx(expected[LAYOUT.say], abs=1e-5)
    assert abs(float(policy.query.named_gain[...])) > 0.01
    assert np.abs(policy.query.gate[...]).min() > 1e-4


def test_add_at_by_hand():
    rows, gains = np.array([[2, -1, 0, 2], [-1, -1, -1, -1]]), np.array([[1.0, 7, 0.5, 2], [7, 7, 7, 7]])
    np.testing.assert_array_equal(add_at(jnp.ones((2, 4)), rows, gains), [[1.5, 1, 4, 1], [1, 1, 1, 1]])


def test_everything_learns_but_the_content(policy, evidence):
    """Every parameter of the query moves a logit; the frozen contents get no gradient through the match."""
    hidden_CD = np.ones((6, 16), np.float32)

    def total(query):
        graph, rest = nnx.split(policy)
        model = nnx.merge(graph, rest)
        model.query = query
        item_query, items = model.item_query(evidence), model.tables()
        return jnp.square(model.item_logits(model.acting(hidden_CD, item_query), items, item_query.beside)[:, :9]).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.grad(total)(policy.query)):
        assert float(jnp.abs(leaf).max()) > 1e-4, jax.tree_util.keystr(path)


def test_dropout_needs_a_key_and_leaves_items_out(policy, evidence):
    content = policy.items.content[...]
    still = [policy.query(evidence, content, None, 0.5) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *still)
    means = [policy.query(evidence, content, jax.random.key(n), 0.3).content[-1] for n in range(40)]
    assert len({tuple(np.asarray(m).round(4).tolist()) for m in means}) > 3  # three items named, left out in many ways


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_changes_nothing(policy, evidence, kind):
    """Other evidence of that kind, the same item_query; of any other kind, another."""
    q = policy.query
    graph, params = nnx.split(q)
    bare = nnx.merge(graph, params)
    bare.leave_out = (kind,)
    content = policy.items.content[...]
    other = random_evidence(np.random.default_rng(9), LAYOUT, 6)
    changes = {
        "text": {"text": other.text},
        "asked": {"asked": np.concatenate([other.asked[:, :-3], evidence.asked[:, -3:]], 1)},
        "named": {"named": np.where(evidence.named >= 0, 1, -1)}, "near": {"nearness": other.nearness},
        "people": {"people_matches": evidence.people_matches + 1},
    }  # fmt: skip
    for name, change in changes.items():
        before, after = bare(evidence, content), bare(evidence._replace(**change), content)
        same = bool(jnp.array_equal(before.content, after.content) and jnp.array_equal(before.gains, after.gains))
        assert same == (name == kind), name


def test_a_genre_asked_for_lifts_its_items_at_the_start():
    """First values: a genre asked for adds 2 to the match of an item of that genre alone."""
    query = Query(6, FACETS, 2, 4, 16, rngs=nnx.Rngs(0))
    none, zero = np.full((1, 3), -1), np.zeros((1, 3))
    evidence = ContextFeatures(np.zeros((1, 6)), np.array([[0, 1.0, 0, 0]]), none, zero, none, zero, none, zero)
    item_query = query(evidence, jnp.zeros((9, 6 + FACETS + 1)))
    np.testing.assert_allclose(item_query.content[0], [*[0] * 6, 0, 2.0, 0, 0, 0, 0.7], atol=0.03)


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS])
def test_a_deafened_query_says_what_one_without_the_evidence_says_and_can_learn_it(policy, evidence, kinds):
    graph, params, frozen = split(policy)
    contents = policy.items.content[...]
    query = {**params["query"], "gate": params["query"]["gate"].at[3:].set(0.0)}  # as no training ever moved them
    seeing = nnx.merge(graph, {**params, "query": ablated(query, kinds)}, frozen)
    deaf = nnx.merge(graph, {**params, "query": query}, frozen)
    deaf.query.leave_out = kinds
    got, wanted = seeing.item_query(evidence), deaf.item_query(evidence)
    np.testing.assert_allclose(got.content, wanted.content, atol=1e-5)
    np.testing.assert_allclose(got.vector, wanted.vector, atol=1e-5)
    rows = [add_at(jnp.zeros((6, LAYOUT.num_items)), *item_query.beside) for item_query in (got, wanted)]
    np.testing.assert_allclose(*rows, atol=1e-6)

    def total(query):
        item_query = nnx.merge(graph, {**params, "query": query}, frozen).item_query(evidence)
        return (item_query.content @ contents.T).sum() + item_query.gains.sum()

    grad = jax.grad(total)(ablated(query, kinds))
    moved = {"text": "text_kernel", "asked": "asked_match", "named": "named_kernel"}
    assert all(np.abs(grad[moved[kind]]).max() > 1e-4 for kind in kinds if kind in moved)
    by_match = dict(zip(MATCHES, np.abs(grad["gain"]).tolist(), strict=True))
    assert all(by_match[kind] > 1e-4 for kind in set(kinds) & {"text", "named", "near", "people"})
