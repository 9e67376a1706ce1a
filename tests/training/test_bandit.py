"""The real PPO iteration on a problem so small that all replies can be listed, so that its optimum is known exactly.

The objective E[R(y)] - act_kl KL(act) - word_kl KL(words | act) is solved by backward induction: given the act a,
words follow pi_ref(w | a) exp(R(w) / word_kl) / Z(a), and acts pi_ref(a) exp((R(a) + word_kl log Z(a)) / act_kl). Two
contexts want different items; R(a) is the standardised, clipped exact relevance of planted vectors, R(w) the penalty of
a reply without its end.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.common import get_config
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import copy_tree, split_model
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.decisions import BaseRates
from crs_jax.models.gpt2 import GPT2Config
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import policy_likelihood
from crs_jax.rl.frozen_models import FrozenModels, Graphs
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.rl.sampling import Replies
from crs_jax.runtime.sharding import make_mesh, shard_batch
from crs_jax.training.optimizer import Rates, make_optimizer
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.state import fresh_state

WORDS, ITEMS, EMBEDDING, REPLY = 5, 6, 8, 3
LAYOUT = Layout(
    num_words=WORDS, item_offset=WORDS + 6, num_items=ITEMS, act_items=1,
    pad=WORDS, seeker=WORDS + 1, recommender=WORDS + 2, rec=WORDS + 3, say=WORDS + 4, end=WORDS + 5,
)  # fmt: skip
ACT_KL, WORD_KL, PENALTY, CLIP = 0.7, 0.4, 0.5, 1.5
MEAN, STD, TOTAL_STD = 0.1, 0.4, 0.8
ITERATIONS = 100
RELEVANCE_KN = np.array([[0.6, 0.1, -0.5, 0.3, -0.2, 0.0], [-0.4, 0.2, 0.5, 0.7, -0.1, -0.6]])
# Two of them are cut off by the clip: 0.7 of context 1 at 1.5, -0.6 at -1.5.
REWARD_KN = np.clip((RELEVANCE_KN - MEAN) / STD / TOTAL_STD, -CLIP, CLIP)
PROMPT_KP = np.array(
    [
        [LAYOUT.pad, LAYOUT.seeker, 1, LAYOUT.recommender, LAYOUT.rec],
        [LAYOUT.seeker, 0, 3, LAYOUT.recommender, LAYOUT.rec],
    ],
    np.int32,
)
MASK_KP = np.not_equal(PROMPT_KP, LAYOUT.pad)
NAMED_KX = np.array([[3, -1], [-1, -1]], np.int32)  # item 3 was named in context 0: proposing it earns nothing
REWARD_KN[0, 3] = 0.0


def all_replies() -> list[list[int]]:
    """Every reply of the grammar: an item or none, `<|say|>`, then words and the own item up to the end or the cut."""
    replies = []
    for act in [[], *([LAYOUT.item_offset + a] for a in range(ITEMS))]:
        head = [*act, LAYOUT.say]
        room = REPLY - len(head)
        for length in range(room + 1):
            for words in itertools.product([*range(WORDS), *act], repeat=length):
                replies.append([*head, *words] if length == room else [*head, *words, LAYOUT.end])
    return replies


REPLIES = all_replies()
ACT_Y = np.array([y[0] - LAYOUT.item_offset if y[0] != LAYOUT.say else ITEMS for y in REPLIES])
ENDED_Y = np.array([y[-1] == LAYOUT.end for y in REPLIES])
TOKENS_YR = np.array([[*y, *[LAYOUT.pad] * (REPLY - len(y))] for y in REPLIES], np.int32)
REAL_YR = np.arange(REPLY) < np.array([len(y) for y in REPLIES])[:, None]
IS_ACT_YR = np.arange(REPLY) <= np.array([y.index(LAYOUT.say) for y in REPLIES])[:, None]


def make_policy(seed: int) -> Policy:
    content_NE = np.random.default_rng(seed).normal(size=(ITEMS, EMBEDDING)).astype(np.float32)
    rngs = nnx.Rngs(params=jax.random.key(seed))
    rates = BaseRates(np.zeros(1), np.full(2, -np.log(WORDS)), -np.log(WORDS))  # an end is as likely as one word
    policy = Policy(GPT2Config(1, 16, 2, 16), LAYOUT, content_NE, rates=rates, rngs=rngs, scale=0.3)
    policy.query.gain[...] = 0.3 * policy.query.gain[...]  # so that no item is too rare to be drawn
    return policy


def item_vectors(relevance_KN: np.ndarray) -> jax.Array:
    """Unit vectors whose dot products with the two contexts' text vectors (axes 0 and 1) are the given numbers."""
    items_NE = np.zeros((ITEMS, EMBEDDING), np.float32)
    items_NE[:, :2] = relevance_KN.T
    items_NE[:, 2] = np.sqrt(1 - np.square(items_NE).sum(1))
    return jnp.asarray(items_NE)


class Bandit:
    """Policy, judges and the jitted iteration for one kind of critic."""

    def __init__(
        self, value: str, gae_lambda: float, group_baseline: bool = True, seed: int = 5, all_acts=0, **changes
    ):
        c = get_config()
        c.data.reply_tokens, c.data.act_items, c.model.value = REPLY, 1, value
        c.reward.clip, c.reward.alpha, c.reward.gamma = CLIP, 0.0, 0.0
        c.ppo.update({
            "contexts": 64, "group": 8, "epochs": 1, "minibatches": 4, "learning_rate": 1e-2, "decode_block": REPLY,
            "missing_end_penalty": PENALTY, "gae_lambda": gae_lambda, "group_baseline": group_baseline,
            "all_acts": all_acts, "slate_batches": 1, "step_kl": 1e9,
        })  # fmt: skip
        c.update(changes)
        policy_graph, self.reference, self.frozen = split_model(make_policy(seed))
        critic = nnx.merge(policy_graph, copy_tree(self.reference), self.frozen) if value == "separate" else None
        actor = ActorCritic(nnx.merge(policy_graph, self.reference, self.frozen), value, critic)
        actor_graph, self.params, _ = split_model(actor)
        reward_graph, reward, reward_frozen = split_model(RewardModel(make_policy(seed + 1)))
        self.frozen_models = FrozenModels(
            copy_tree(self.reference), reward, self.frozen, reward_frozen, item_vectors(RELEVANCE_KN),
            jnp.array([0, 1.0, 0]),
        )  # fmt: skip
        self.normaliser = Normaliser(jnp.array([0.3, MEAN, 0]), jnp.array([2, STD, 1]), jnp.float32(TOTAL_STD))
        self.mesh = mesh = make_mesh(c)
        text_KE = np.eye(EMBEDDING, dtype=np.float32)[:2]
        rows = Contexts(
            PROMPT_KP, MASK_KP, ContextFeatures(
                text_KE, np.zeros((2, 0)), NAMED_KX, np.zeros_like(NAMED_KX), np.full((2, 1), -1), np.zeros((2, 1)),
                np.full((2, 1), -1), np.zeros((2, 1)), np.zeros_like(text_KE),
            ),
        )  # fmt: skip
        self.contexts = shard_batch(jax.tree.map(lambda a: np.repeat(a, c.ppo.contexts // 2, 0), rows), mesh)
        self.optimizer = make_optimizer(Rates(c.ppo.learning_rate), 0.05, ITERATIONS, 1.0)
        self.graphs, self.config = Graphs(actor_graph, policy_graph, reward_graph), c
        self.iteration = make_iteration(self.graphs, self.optimizer, c, mesh)
        listed = jax.tree.map(jnp.asarray, rows)
        replies = Replies(*(jnp.tile(a, (2, 1)) for a in (TOKENS_YR, REAL_YR)), jnp.zeros(2))

        @jax.jit
        def logp(params):
            found = policy_likelihood(policy_graph, params, self.frozen, listed, replies, 1.0).logp_BR
            return found.reshape(2, *TOKENS_YR.shape)

        self.logp = logp

    def distribution(self, params) -> np.ndarray:
        """Probability of each reply `[2, Y]`, float64."""
        return np.exp(np.asarray(self.logp(params), np.float64).sum(-1))

    def optimum(
        self, act_kl: float, word_kl: float, penalty: float = PENALTY, decision_kl: float | None = None
    ) -> np.ndarray:
        """The solution in closed form, from the reference's own probabilities and the rewards alone.

        Whether to propose has the coefficient `decision_kl`, that of the act where it is left out.
        """
        logp_KYR = np.asarray(self.logp(self.reference), np.float64)
        act_KY = np.exp(np.where(IS_ACT_YR, logp_KYR, 0).sum(-1))
        word_KY = np.exp(np.where(IS_ACT_YR, 0, logp_KYR).sum(-1)) * np.exp(-penalty * ~ENDED_Y / word_kl)
        out = np.zeros_like(act_KY)
        for k in range(2):
            for a in range(ITEMS + 1):
                own = np.equal(ACT_Y, a)
                z = word_KY[k, own].sum()
                reward = 0.0 if a == ITEMS else REWARD_KN[k, a]
                act = act_KY[k, own][0] * np.exp((reward + word_kl * np.log(z)) / act_kl)
                out[k, own] = act * word_KY[k, own] / z
        if decision_kl is not None:
            none_Y = np.equal(ACT_Y, ITEMS)
            for k in range(2):
                p = np.exp(logp_KYR[k].sum(-1))
                p_kind = np.array([p[~none_Y].sum(), p[none_Y].sum()])  # of the reference
                total = np.array([out[k, ~none_Y].sum(), out[k, none_Y].sum()])
                kind = p_kind * (total / p_kind) ** (act_kl / decision_kl)  # soft values are act_kl log(total / p)
                out[k] *= np.where(none_Y, kind[1] / total[1], kind[0] / total[0])
        return out / out.sum(-1, keepdims=True)

    def train(
        self,
        act_kl: float,
        word_kl: float,
        average: int,
        frozen_models: FrozenModels | None = None,
        decision_kl: float | None = None,
    ) -> np.ndarray:
        """Mean of the policy's distributions over the last `average` iterations."""
        decision_kl = act_kl if decision_kl is None else decision_kl
        coefficients = first_extra(act_kl, decision_kl, word_kl)
        state = fresh_state(copy_tree(self.params), self.optimizer, self.mesh, coefficients)
        seen = []
        for number in range(ITERATIONS):
            state, _ = self.iteration(
                state, frozen_models or self.frozen_models, self.normaliser, self.contexts, jax.random.key(0)
            )
            if number >= ITERATIONS - average:
                seen.append(self.distribution(state.params["policy"]))
        return np.mean(seen, 0)


def distance(p_KY: np.ndarray, q_KY: np.ndarray) -> np.ndarray:
    """Total variation, by context."""
    return 0.5 * np.abs(p_KY - q_KY).sum(-1)


def acts(p_KY: np.ndarray) -> np.ndarray:
    """Probabilities of the acts, the empty one last: `[2, ITEMS + 1]`."""
    return np.stack([p_KY[:, np.equal(ACT_Y, a)].sum(-1) for a in range(ITEMS + 1)], -1)


@pytest.fixture(scope="module")
def bandit() -> Bandit:
    return Bandit("detached", gae_lambda=1.0)


def test_listed_replies_are_all_there_are(bandit):
    np.testing.assert_allclose(bandit.distribution(bandit.reference).sum(-1), 1.0, atol=1e-5)


def test_bounds_below_are_tight(bandit):
    """The reference is far from the optimum, and a coefficient or a reward wrong by a fifth lies beyond the bounds."""
    optimum = bandit.optimum(ACT_KL, WORD_KL)
    assert (distance(bandit.distribution(bandit.reference), optimum) > 0.3).all()
    for wrong in ((0.8 * ACT_KL, WORD_KL), (1.2 * ACT_KL, WORD_KL), (ACT_KL, 0.8 * WORD_KL), (ACT_KL, 1.2 * WORD_KL)):
        assert distance(bandit.optimum(*wrong), optimum).max() > 0.045, wrong


def test_kl_regularised_optimum_is_reached(bandit):
    optimum, found = bandit.optimum(ACT_KL, WORD_KL), bandit.train(ACT_KL, WORD_KL, average=30)
    assert (distance(acts(found), acts(optimum)) < 0.015).all()
    assert (distance(found, optimum) < 0.02).all()


@pytest.mark.slow
def test_kl_regularised_optimum_with_a_separate_critic_and_lambda_below_one():
    """At lambda 0.95 the critic's error moves the optimum itself, by up to a twentieth of the rewards."""
    bandit = Bandit("separate", gae_lambda=0.95, group_baseline=False)
    optimum, found = bandit.optimum(ACT_KL, WORD_KL), bandit.train(ACT_KL, WORD_KL, average=30)
    assert (distance(found, optimum) < 0.025).all()


def test_bandit_without_kl_is_solved(bandit):
    relevance_KN = np.full((2, ITEMS), 0.1)
    relevance_KN[0, 4], relevance_KN[1, 1] = 0.6, 0.6
    frozen_models = bandit.frozen_models._replace(items_NE=item_vectors(relevance_KN))
    found = bandit.train(0.0, 0.0, average=1, frozen_models=frozen_models)
    assert (acts(found)[[0, 1], [4, 1]] > 0.98).all()
    assert ((found * ENDED_Y).sum(-1) > 0.98).all()


@pytest.mark.parametrize(("acts_summed", "decision_kl"), [pytest.param(4, None, marks=pytest.mark.slow), (ITEMS, 2.5)])
def test_acts_summed_over_leave_the_optimum_where_it_is(acts_summed, decision_kl):
    """Over some of the acts, or all; and with a coefficient of its own of whether to propose. Words earn nothing."""
    bandit = Bandit("detached", gae_lambda=1.0, all_acts=acts_summed, ppo={"missing_end_penalty": 0.0})
    optimum = bandit.optimum(ACT_KL, WORD_KL, penalty=0.0, decision_kl=decision_kl)
    found = bandit.train(ACT_KL, WORD_KL, average=30, decision_kl=decision_kl)
    assert (distance(acts(found), acts(optimum)) < 0.015).all()
    assert (distance(found, optimum) < 0.02).all()


@pytest.mark.slow
def test_kl_regularised_optimum_by_rloo():
    """Without a value function; KL in the reward, so the optimum is the same."""
    bandit = Bandit("detached", gae_lambda=1.0, algorithm="rloo")
    optimum, found = bandit.optimum(ACT_KL, WORD_KL), bandit.train(ACT_KL, WORD_KL, average=30)
    assert (distance(acts(found), acts(optimum)) < 0.015).all()
    assert (distance(found, optimum) < 0.02).all()


def test_tilt_learns_the_optimum_of_acts():
    bandit = Bandit("detached", gae_lambda=1.0, all_acts=ITEMS, algorithm="tilt")
    optimum = bandit.optimum(ACT_KL, WORD_KL, penalty=0.0, decision_kl=2.5)
    found = bandit.train(ACT_KL, WORD_KL, average=1, decision_kl=2.5)
    assert (distance(acts(bandit.distribution(bandit.reference)), acts(optimum)) > 0.15).all()
    assert (distance(acts(found), acts(optimum)) < 0.01).all()


@pytest.fixture(scope="module")
def listing() -> Bandit:
    """Lists of three; words earn nothing, so that an item's value is the same at each place."""
    lists = {"missing_end_penalty": 0.0, "list_items": 3, "lists": 8}
    return Bandit("detached", gae_lambda=1.0, algorithm="rankwise", all_acts=ITEMS, ppo=lists)


def test_lists_leave_the_optimum_of_single_acts_where_it_is(listing):
    """Whether to propose at all included."""
    optimum, found = listing.optimum(ACT_KL, WORD_KL, penalty=0.0), listing.train(ACT_KL, WORD_KL, average=30)
    assert (distance(acts(listing.distribution(listing.reference)), acts(optimum)) > 0.2).all()
    assert (distance(acts(found), acts(optimum)) < 0.015).all()


def test_lists_without_kl_are_sorted_by_reward(listing):
    """Their gain is near the most that any order has, though the first place alone takes almost all probability."""

    def gain(p_KA):
        ranked = np.argsort(-p_KA[:, :ITEMS])[:, :3]
        return (np.take_along_axis(REWARD_KN, ranked, 1) / np.log2([2, 3, 4])).sum(-1)

    found, start = acts(listing.train(0.0, WORD_KL, average=1)), acts(listing.distribution(listing.reference))
    best = (-np.sort(-REWARD_KN)[:, :3] / np.log2([2, 3, 4])).sum(-1)
    assert (gain(start) < best - 0.5).any()
    assert (gain(found) > best - 0.05).all()
    assert (found.max(-1) > 0.9).all()


@pytest.mark.slow
def test_grpo_earns_the_reward_and_its_penalties_hold():
    """Its standardised advantages have no optimum in closed form: free acts come near the best, held ones stay."""
    bandit = Bandit("detached", gae_lambda=1.0, algorithm="grpo")
    value_KA = np.concatenate([REWARD_KN, np.zeros((2, 1))], 1)
    start = bandit.distribution(bandit.reference)
    free, held = bandit.train(0.01, 30.0, average=10), bandit.train(30.0, 0.01, average=10)
    first, reached = ((acts(p) * value_KA).sum(-1) for p in (start, free))
    assert (reached > value_KA.max(-1) - 0.2 * (value_KA.max(-1) - first)).all()
    assert (distance(acts(free), acts(start)) > 0.3).all()
    assert (distance(acts(held), acts(start)) < 0.05).all()

    def ended(p_KY):
        return (p_KY * ENDED_Y).sum(-1)  # an end that is missing is punished, so free words learn to come to one

    assert (np.abs(ended(free) - ended(start)) < 0.15).all()
    assert (ended(held) > ended(start) + 0.1).all()
