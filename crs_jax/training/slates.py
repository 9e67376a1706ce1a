"""The first items of an iteration's contexts, many more than are replied to: made, and turned into a loss.

A context's slate needs no sampled words: one prefill gives the hidden state that has read `<|rec|>`, and the reward
model says what each of the likeliest items would earn. So the expectation is taken over hundreds of contexts for the
price of a few sampled replies. What reads the hidden state learns from it (query, items, decisions); the trunk, whose
states are taken as they were when the iteration began, learns from replies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crs_jax.models.likelihood import first_token
from crs_jax.models.policy import Policy
from crs_jax.models.query import Evidence
from crs_jax.rl import all_acts, rankwise
from crs_jax.rl.all_acts import Acts, Known
from crs_jax.rl.reward import Normaliser
from crs_jax.runtime.sharding import after, in_parts
from crs_jax.training.contexts import Contexts, after_rec
from crs_jax.training.judging import Graphs, Judges, act_scores
from crs_jax.training.passes import first_of


class Slates(NamedTuple):
    """What the updates learn first tokens from; leading axis C contexts.

    Attributes:
      evidence: of the contexts.
      hidden_CD: states that have read `<|rec|>`, as they were when the iteration began.
      acts: the likeliest items and whether to propose, with what each earns beyond the policy's mean.
      known: what is known of rewards.
      target: probabilities under the optimum of rewards and KL penalties (`all_acts.tilted`), for `tilt`; else None.
      place_CLK: lists of the items (`rl/rankwise.py`), for `rankwise`; else None.
    """

    evidence: Evidence
    hidden_CD: jax.Array
    acts: Acts
    known: Known
    target: tuple[jax.Array, jax.Array] | None
    place_CLK: jax.Array | None


def make_slates(
    graphs: Graphs,
    judges: Judges,
    normaliser: Normaliser,
    config: ConfigDict,
    mesh: Mesh,
    policy: Policy,
    contexts: Contexts,
    act_kl: jax.Array,
    decision_kl: jax.Array,
    key: jax.Array,
) -> Slates:
    """Of C contexts, a multiple of `config.ppo.contexts`, under the policy that samples; inside jit."""
    c, r, C = config.ppo, config.reward, len(contexts.prompt_CP)
    items_key, shuffle_key, lists_key = jax.random.split(key, 3)

    def some(given: tuple[Contexts, jax.Array]) -> tuple[Any, ...]:
        contexts, key = given
        hidden_CD, tables, wish = after_rec(policy, contexts)
        first = first_token(policy, tables, hidden_CD, wish, c.temperature)
        contexts = after(contexts, first.kind_C2)
        reference = first_of(graphs.policy, judges.reference, judges.frozen, contexts, c.temperature)
        drawn = 0 if config.algorithm == "rankwise" else c.all_acts // 4  # lists are of distinct items
        row_CA, weight_CA = all_acts.choose(first.item_CN, c.all_acts, drawn, key)
        exact = r.relevance == "exact"
        scores = act_scores(graphs, judges, normaliser, contexts, row_CA, policy.layout, exact, r.clip)
        return hidden_CD, row_CA, weight_CA, all_acts.at(first, row_CA), all_acts.at(reference, row_CA), *scores

    parts = C // c.contexts  # no more at once than are replied to
    found = lax.map(some, (in_parts(contexts, parts, mesh), jax.random.split(items_key, parts)))
    hidden_CD, row_CA, weight_CA, first, reference, score_CA, empty_C = jax.tree.map(
        lambda a: a.reshape(C, *a.shape[2:]), found
    )
    if c.shuffled_rewards:
        both_CA = jnp.concatenate([score_CA, empty_C[:, None]], 1)
        both_CA = jax.random.permutation(shuffle_key, both_CA.reshape(-1)).reshape(both_CA.shape)
        score_CA, empty_C = both_CA[:, :-1], both_CA[:, -1]
    earned = score_CA, empty_C, act_kl, decision_kl
    acts, known = all_acts.known_advantages(row_CA, weight_CA, first, reference, *earned)
    target = place_CLK = None
    if config.algorithm == "tilt":
        target = all_acts.tilted(reference, weight_CA / jnp.exp(first.item_CN), *earned)
    if config.algorithm == "rankwise":
        place_CLK = rankwise.draw(lists_key, acts.logp_CA, c.lists, c.list_items)
    return Slates(contexts.evidence, hidden_CD, acts, known, target, place_CLK)


def scaled(slates: Slates, scale: jax.Array) -> Slates:
    """With advantages over `scale`."""
    acts = slates.acts
    return slates._replace(
        acts=acts._replace(advantage_CA=acts.advantage_CA / scale, advantage_C2=acts.advantage_C2 / scale)
    )


def slate_loss(policy: Policy, slates: Slates, temperature: float, clip: float) -> jax.Array:
    """Of each context, `[C]`: the clipped surrogate of its first token, or for `tilt` the cross-entropy."""
    wish = policy.wish(slates.evidence)
    first = first_token(policy, policy.tables(), slates.hidden_CD, wish, temperature)
    first = all_acts.at(first, slates.acts.row_CA)
    if slates.target is not None:
        return all_acts.cross_entropy(first, slates.target)
    loss_C = all_acts.surrogate(first, slates.acts, clip)
    if slates.place_CLK is not None:
        loss_C += rankwise.surrogate(first.item_CN, slates.acts, slates.place_CLK, clip)
    return loss_C
