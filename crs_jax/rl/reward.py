"""The reward: signals predicted from (context, reply), standardised, weighted, clipped; and where it is paid.

R = alpha * engagement + beta * relevance + gamma * sentiment shift, and what plugins add (`signals/registry.py`). The
whole of R is read at the reply's last token; the part that the act alone explains is read at `<|say|>` and paid there,
the rest at the end, so that a reply's total is R. PPO's first items learn from the rewards of all candidates instead
(`training/batch.py`), and of a sampled reply the words alone learn then. At `<|say|>` a user's own reward says nothing
yet, and the signals' weights are scaled up to the same total.

Of an ensemble of J reward models R is the mean of the members' totals less `spread` times their standard deviation: a
policy that goes where the members were not taught the same finds less there than one of them would promise (Coste et
al. 2023, arXiv 2310.02743, uncertainty-weighted optimisation, with the standard deviation in place of the variance, so
that `spread` has no unit). The deviation is that of the weighted, normalised totals, at the end and at `<|say|>` alone,
not of single signals: the total is what is optimised, and members that err to opposite sides in two signals agree on
it. It is taken before clipping, since members beyond the bound would all say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from crs_jax.features.context import ContextFeatures
from crs_jax.models.heads import SignalHeads
from crs_jax.models.match_features import match_features
from crs_jax.models.policy import Policy
from crs_jax.rl.scoring import Hidden, TokenMasks, token_masks, tree_hidden
from crs_jax.signals.registry import column
from crs_jax.signals.relevance import new_items


class RewardModel(nnx.Module):
    """A policy-shaped trunk (it starts as the SFT model) with a head a signal."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.heads = SignalHeads(policy.trunk.config.width)

    def match_features(self, features: ContextFeatures, act_BM: jax.Array) -> jax.Array:
        """How acts fit the context, by the items' frozen contents; what was named before does not count."""
        policy = self.policy
        return match_features(
            features, new_items(act_BM, features.named), policy.items.content[...], policy.query.genres
        )


class Normaliser(NamedTuple):
    """Of reference samples: mean and standard deviation of each signal, `[S]` in the order of `SIGNALS`, and the
    standard deviation of their weighted sum. Fixed before PPO starts, so that the objective stays one and the same.
    """

    mean_S: jax.Array
    std_S: jax.Array
    total_std: jax.Array


class Scores(NamedTuple):
    """Of each reply, `[B]` float32: the total R, its part that the act alone explains, and the standardised signals
    (means over members; NaN where a signal does not exist). `spread_B` is the members' standard deviation of the
    unclipped total, 0 for one alone.
    """

    act_B: jax.Array
    total_B: jax.Array
    signal_BS: jax.Array
    spread_B: jax.Array


def stack(trees: Sequence[Any]) -> Any:
    """Trees of an ensemble's members as one, by their numbers; of one alone the tree itself."""
    return trees[0] if len(trees) == 1 else {str(number): tree for number, tree in enumerate(trees)}


def members(tree: Any) -> list[Any]:
    """What `stack` was given."""
    if not (isinstance(tree, dict) and "0" in tree):
        return [tree]
    return [tree[str(number)] for number in range(len(tree))]


def mean_of(each_J: jax.Array) -> jax.Array:
    """Mean over members, the first axis; of one alone its bits."""
    return each_J[0] if each_J.shape[0] == 1 else each_J.mean(0)


def spread_of(each_J: jax.Array) -> jax.Array:
    """Standard deviation over members, the first axis (of these members, so divided by J)."""
    return jnp.zeros_like(each_J[0]) if each_J.shape[0] == 1 else each_J.std(0)


def read_heads(
    heads: SignalHeads, hidden: Hidden, masks: TokenMasks, features_BF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Predicted signals at `<|say|>` and at the last token, `[B, S]` each."""
    C, G, R, D = hidden.at.shape
    at_BRD = hidden.at.reshape(C * G, R, D)
    say_BR = jnp.where(masks.say_BR.any(-1, keepdims=True), masks.say_BR, masks.last_BR)
    places = (say_BR, masks.last_BR)
    read = [heads(jnp.einsum("BR,BRD->BD", where.astype(at_BRD.dtype), at_BRD), features_BF) for where in places]
    return read[0], read[1]


def combine(signal_BS: jax.Array, weight_S: jax.Array, clip: float) -> jax.Array:
    """Weighted sum of standardised signals, `[B]` (or with more leading axes).

    Where a signal does not exist (NaN: an empty act has no relevance) the weights of the others are scaled up to the
    same total; where none exists, or all weights are 0, the result is 0.
    """
    exists = jnp.isfinite(signal_BS)
    weight_BS = jnp.where(exists, weight_S, 0.0)
    total = jnp.abs(weight_S).sum()
    present = jnp.abs(weight_BS).sum(-1)
    scale_B = jnp.where(present > 0, total / jnp.maximum(present, 1e-12), 0.0)
    return jnp.clip((jnp.where(exists, signal_BS, 0.0) * weight_BS).sum(-1) * scale_B, -clip, clip)


def score(
    say_JBS: jax.Array,
    end_JBS: jax.Array,
    by_formula: Mapping[str, jax.Array],
    normaliser: Normaliser,
    weight_S: jax.Array,
    clip: float,
    spread: jax.Array | float,
) -> Scores:
    """Scores of replies by J reward models.

    Args:
      say_JBS, end_JBS: predicted signals at `<|say|>` and at the end, label units.
      by_formula: from `predict_signals`, what takes the place of heads.
      normaliser: standardises each signal and the total, the same for all members.
      weight_S: of the signals, and of a reward of one's own behind them.
      clip: bound of the total, both sides.
      spread: how many standard deviations over members are taken from the mean; nothing where J is 1.
    """
    say_JBS, end_JBS = (
        (with_formulas(s, by_formula) - normaliser.mean_S) / normaliser.std_S for s in (say_JBS, end_JBS)
    )
    weight_S = weight_S / normaliser.total_std
    if say_JBS.shape[0] == 1:
        act_B, total_B = (combine(s[0], weight_S, clip) for s in (say_JBS, end_JBS))
        return Scores(act_B, total_B, end_JBS[0], jnp.zeros_like(total_B))
    act_JB, total_JB = (combine(s, weight_S, jnp.inf) for s in (say_JBS, end_JBS))
    act_B, total_B = (jnp.clip(mean_of(r) - spread * spread_of(r), -clip, clip) for r in (act_JB, total_JB))
    return Scores(act_B, total_B, mean_of(end_JBS), spread_of(total_JB))


def with_formulas(signal_BS: jax.Array, by_formula: Mapping[str, jax.Array]) -> jax.Array:
    """The signals with these values in their columns; leading axes as they come."""
    for name, value_B in by_formula.items():
        signal_BS = signal_BS.at[..., column(name)].set(value_B)
    return signal_BS


def fit_normaliser(signal_BS: jax.Array, weight_S: jax.Array) -> Normaliser:
    """From signals of reference samples, ignoring NaN; what does not vary keeps standard deviation 1.

    A signal varies where its standard deviation is above a millionth of its largest value: rounding is below that.
    """
    top_S = jnp.nan_to_num(jnp.nanmax(signal_BS, 0))
    below_BS = signal_BS - top_S  # exactly 0 where all are equal, and so is their mean
    mean_S = jnp.nan_to_num(jnp.nanmean(below_BS, 0))
    std_S = jnp.nan_to_num(jnp.nanstd(below_BS, 0))
    varies_S = std_S > 1e-6 * jnp.nan_to_num(jnp.nanmax(jnp.abs(signal_BS), 0))
    std_S = jnp.where(varies_S, std_S, 1.0)
    standard_BS = jnp.where(varies_S | jnp.isnan(below_BS), (below_BS - mean_S) / std_S, 0.0)
    total_B = combine(standard_BS, weight_S, jnp.inf)
    total_std = total_B.std()
    return Normaliser(top_S + mean_S, std_S, jnp.where(total_std > 1e-6 * jnp.abs(total_B).max(), total_std, 1.0))


def predict(
    model: RewardModel,
    prompt_CP: jax.Array,
    prompt_mask_CP: jax.Array,
    tokens_CGR: jax.Array,
    mask_CGR: jax.Array,
    features: ContextFeatures,
) -> tuple[jax.Array, jax.Array, TokenMasks]:
    """Predicted signals at `<|say|>` and at the end of each reply, `[C * G, S]` each, and the replies' parts.

    Args:
      model: the reward model.
      prompt_CP, prompt_mask_CP, tokens_CGR, mask_CGR: contexts and replies, as for `tree_hidden`.
      features: of the contexts, leading axis C.
    """
    C, G, R = tokens_CGR.shape
    tables = model.policy.tables()
    hidden = tree_hidden(model.policy, tables, prompt_CP, prompt_mask_CP, tokens_CGR, mask_CGR)
    masks = token_masks(tokens_CGR.reshape(C * G, R), mask_CGR.reshape(C * G, R), model.policy.layout)
    features_BF = model.match_features(jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), features), masks.items_BM)
    return *read_heads(model.heads, hidden, masks, features_BF), masks
