"""Self-checks of PPO's first iterations: what must hold before anything has been learned, or the run stops.

Log-probabilities that are the same function of the same weights still differ by what rounding does to them, and
programs round in different places. How much that is follows from the type, the depth and the logits. Rounding to a type
whose largest relative error is u has a relative error of .42 u RMS (uniform between two neighbours, mantissas uniform
in the logarithm). Each layer adds twice to the residual stream, which rounds the whole of it; what is rounded inside
the branches, their norms, products and nonlinearities, has a branch's size, and all branches together have the
stream's. So hidden states are off by `noise = .42 u sqrt(2 layers + 8)` of their size, in no direction more than in
another, and logits by `noise` times their standard deviation over the vocabulary; an offset that all share falls out of
the softmax. With d such errors of single logits,

    error of log p_c = d_c - sum_v p_v d_v,   whose variance is (1 - p_c)^2 + sum over v != c of p_v^2 <= 2 (1 - p_c)^2

times theirs: a token that has almost all probability has no error. Two passes each have one, hence

    RMS gap = 2 noise (standard deviation of logits / temperature) RMS(1 - p).

Measured on random models in bfloat16 (12 x 768 and 4 x 128, flat and peaked logits, temperatures 1 and .7) it is .5 to
1.0 of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from crs_jax.models.policy import MASKED, Logits
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.ppo import masked_mean
from crs_jax.rl.sampling import causal, positions
from crs_jax.rl.scoring import TokenMasks

UNIT = {"float32": 2.0**-24, "tensorfloat32": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to a type."""
SAFETY = 2.0  # times the RMS that is derived above
QUANTILE = 3.0  # the 99 % quantile of a normal distribution is 2.6 standard deviations
FLOOR = 1e-3  # nats; smaller gaps are ignored
PARTS = ("act", "word")


class SelfCheckError(RuntimeError):
    """A self-check found something else than it expected; the message says what, where."""


class Scale(NamedTuple):
    """Of logits over the temperature: standard deviation over what may follow, and the largest size, RMS over rows."""

    spread: jax.Array
    size: jax.Array


def noise_of(model: ConfigDict) -> float:
    """Relative error of hidden states by rounding, RMS; `model` is `config.model`."""
    unit = max(UNIT[model.dtype], UNIT[model.matmul])
    return 0.42 * unit * (2 * model.layers + 8) ** 0.5


def logit_scales(
    graph: Any, params: Any, frozen: Any, contexts: Contexts, temperature: float | jax.Array
) -> dict[str, Scale]:
    """Of the first act's logits and of those of words, where the last word of each context was read."""
    policy = nnx.merge(graph, params, frozen)
    tables, item_query = policy.tables(), policy.item_query(contexts.features)
    prompts = policy.embed(contexts.prompt_CP, tables), positions(contexts.mask_CP), causal(contexts.mask_CP)
    hidden_CPD = policy.trunk(*prompts)
    none_CM = jnp.full((len(hidden_CPD), policy.layout.act_items), -1)
    act = policy.act_logits(policy.acting(hidden_CPD[:, -1], item_query), tables, none_CM, item_query.beside)
    before = max(hidden_CPD.shape[1] - 4, 0)  # end, recommender and rec come after the last word
    word = policy.word_logits(hidden_CPD[:, before], tables, none_CM)
    return dict(zip(PARTS, (_scale(act, temperature), _scale(word, temperature)), strict=True))


def _scale(logits: Logits, temperature: float | jax.Array) -> Scale:
    legal_CN = logits.main > MASKED / 2
    logits_CN = jnp.where(legal_CN, logits.main, 0.0) / temperature
    count_C1 = legal_CN.sum(-1, keepdims=True)
    beside_CN = jnp.where(legal_CN, logits_CN - logits_CN.sum(-1, keepdims=True) / count_C1, 0.0)
    spread = jnp.sqrt((jnp.square(beside_CN).sum(-1) / count_C1[:, 0]).mean())
    return Scale(spread, jnp.sqrt(jnp.square(logits_CN).max(-1).mean()))


def gaps(logp_BR: jax.Array, masks: TokenMasks, **others_BR: jax.Array) -> dict[str, jax.Array]:
    """What `check_gaps` reads of log-probabilities and others that should be equal, for acts and for words."""
    found: dict[str, jax.Array] = {}
    for name, other_BR in others_BR.items():
        gap_BR, rest_BR = logp_BR - other_BR, 1.0 - jnp.exp(jnp.minimum(logp_BR, other_BR))
        for part, mask_BR in zip(PARTS, (masks.act_BR, masks.word_BR), strict=True):
            size_BR = jnp.where(mask_BR, jnp.abs(gap_BR), jnp.nan)
            found |= {
                f"check/{name}/{part}/rms": jnp.sqrt(masked_mean(jnp.square(gap_BR), mask_BR)),
                f"check/{name}/{part}/mean": masked_mean(gap_BR, mask_BR),
                f"check/{name}/{part}/quantile": jnp.where(mask_BR.any(), jnp.nanquantile(size_BR, 0.99), 0.0),
                f"check/{name}/{part}/rest": jnp.sqrt(masked_mean(jnp.square(rest_BR), mask_BR)),
            }
    return found


def check_gaps(name: str, what: str, metrics: Mapping[str, float], scales: Mapping[str, Scale], noise: float) -> None:
    """Compares RMS, mean and 99 % quantile with what rounding explains; single tokens may be further off.

    Raises:
      SelfCheckError: one is beyond its bound.
    """
    for part in PARTS:
        rms, mean, quantile, rest = (metrics[f"check/{name}/{part}/{f}"] for f in ("rms", "mean", "quantile", "rest"))
        scale = scales[part]
        bound, most = (_bound(scale, noise, share) for share in (rest, 1.0))
        _expect(f"{what}, RMS over {part}s", 0.0, rms, bound)
        _expect(f"{what}, mean over {part}s", 0.0, mean, max(bound / 2, FLOOR))  # rounding prefers no sign
        _expect(f"{what}, 99 % quantile over {part}s", 0.0, quantile, QUANTILE * most)


def _bound(scale: Scale, noise: float, rest: float) -> float:
    """Of an RMS gap, nats. Sums of exponentials are float32 whatever the type, so large logits round there too."""
    return max(SAFETY * 2 * noise * float(scale.spread) * rest, 4 * UNIT["float32"] * float(scale.size), FLOOR)


def check_first(metrics: Mapping[str, float], scales: Mapping[str, Scale], noise: float, value: str) -> None:
    """Checks the metrics of iteration 0.

    - ratio 1 on the first minibatch: old log-probs and those under the loss are the same function of the same weights;
    - KL to the reference 0: the policy is the reference;
    - the sampler's log-probs equal the scorer's;
    - rewards and log-probs are finite;
    - the value head, where there is one, starts at zero.

    Args:
      metrics: of the iteration, `check/` included.
      scales: of its contexts, from `logit_scales`.
      noise: from `noise_of`.
      value: kind of value function, for the message.
    """
    tolerance = max(_bound(scale, noise, 1.0) for scale in scales.values())
    _expect("ratio of new to old policy on the first minibatch", 1.0, 1.0 + metrics["check/ratio"], tolerance)
    check_gaps("reference", "log-ratio to the reference policy", metrics, scales, noise)
    check_gaps("sampler", "gap between sampler and scorer log-probs", metrics, scales, noise)
    _expect("rewards and log-probs finite", 1.0, metrics["rewards_finite"], 0.0)
    if "explained_variance" in metrics:
        _expect(f"explained variance of the fresh {value} value head", 0.0, metrics["explained_variance"], 1e-4)


def check_draws(one: jax.Array, other: jax.Array, temperature: float) -> None:
    """Two samplings of the same contexts, each with a key of its own, must differ in what is read off the replies.

    Raises:
      SelfCheckError: they do not.
    """
    if bool(jnp.array_equal(one, other, equal_nan=True)):
        raise SelfCheckError(
            "self-check before ppo iteration 0: expected two keys to draw different replies to the same contexts, "
            f"found the same {len(one)} replies; the sampler does not use its key, or at "
            f"--config.ppo.temperature={temperature:g} only the likeliest is ever drawn"
        )


def check_noise(before: float, now: float) -> None:
    """Two iterations must not draw from the same key."""
    if before == now:
        raise SelfCheckError(
            "self-check at ppo iteration 1: expected a fresh sampling key, found that of iteration 0; "
            "the sampler repeats its noise"
        )


def _expect(what: str, expected: float, found: float, tolerance: float) -> None:
    if not abs(found - expected) <= tolerance:
        raise SelfCheckError(
            f"self-check at ppo iteration 0: {what}: expected {expected:g} within {tolerance:g}, found {found:g}. "
            "This is a fault of the program, not of the data; --config.ppo.checks=false goes on without the checks"
        )
