"""PPO's mathematics: pure functions of float arrays and plain scalars.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Ziegler et al.
2019 (KL-regularised fine-tuning, adaptive coefficient, arXiv 1909.08593), Schulman 2020 ("Approximating KL divergence":
k1, k3).
Axes: B replies, R reply tokens. Masks are True on real tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def require_float(**arrays: jax.Array) -> None:
    """`TypeError` naming the first array that is not floating: rewards cast to int are lost in silence."""
    for name, array in arrays.items():
        if not jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating):
            raise TypeError(f"{name} is {jnp.asarray(array).dtype}, expected a floating type")


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum where the mask holds; what stands elsewhere, NaN included, is ignored."""
    return jnp.where(mask, x, 0.0).sum()


def masked_mean(x: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Mean over the real tokens of the whole batch (0 where there are none).

    Of a part of the batch, with the `count` of the whole: its share of that mean.
    """
    return masked_sum(x, mask) / jnp.maximum(mask.sum() if count is None else count, 1)


def rounding(size: jax.Array) -> jax.Array:
    """16 units in the last place of `size`: sums of a few terms of that size differ by less where they are equal."""
    return 16 * (jnp.nextafter(size, jnp.inf) - size)


def less_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` less its mean over the real tokens, exactly 0 where all are equal: the mean of n equal numbers rounds."""
    below = jnp.where(mask, x - jnp.where(mask, x, -jnp.inf).max(), 0.0)
    return below - masked_mean(below, mask)


def varies(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Whether the real tokens differ by more than rounding does."""
    real = jnp.where(mask, x, 0.0)
    spread = jnp.where(mask, x, -jnp.inf).max() - jnp.where(mask, x, jnp.inf).min()
    return spread > rounding(jnp.abs(real).max())


def masked_variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Population variance over the real tokens."""
    return masked_mean(jnp.square(less_mean(x, mask)), mask)


def whiten(x: jax.Array, mask: jax.Array, shift_mean: bool = True, epsilon: float = 1e-8) -> jax.Array:
    """To variance 1 over the real tokens of the global batch, to mean 0 if `shift_mean`; 0 elsewhere.

    What does not vary has no deviations from its mean, however large it is beside `epsilon`. Under `jax.jit` the sums
    run over all devices' shards, so that one device and eight whiten alike.
    """
    require_float(x=x)
    white = jnp.where(varies(x, mask), less_mean(x, mask), 0.0) * lax.rsqrt(masked_variance(x, mask) + epsilon)
    return jnp.where(mask, white if shift_mean else white + masked_mean(x, mask), 0.0)


def place_rewards(act_score_B: jax.Array, word_score_B: jax.Array, say_BR: jax.Array, last_BR: jax.Array) -> jax.Array:
    """Per-token scores `[B, R]`: the act's at `<|say|>`, the words' at the last real token.

    A reply that never said has no `<|say|>`: both fall on its last token.
    """
    require_float(act_score_B=act_score_B, word_score_B=word_score_B)
    said_B1 = say_BR.any(-1, keepdims=True)
    act_BR = jnp.where(said_B1, say_BR, last_BR)
    return act_score_B[:, None] * act_BR + word_score_B[:, None] * last_BR


def leave_one_out(score_CG: jax.Array) -> jax.Array:
    """Scores less the mean of the other replies to the same context (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    The other replies were drawn independently, so that no gradient is biased; what the context alone explains, most of
    a score's variance, is gone. One reply a context has no others and keeps its score. Equal scores are exactly 0.
    """
    G = score_CG.shape[1]
    if G == 1:
        return score_CG
    beside_CG = score_CG - score_CG[:, :1]  # the mean of others shifts with the scores
    return G / (G - 1) * (beside_CG - beside_CG.mean(1, keepdims=True))


def kl_k1(logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    """Log-ratio log pi/pi_ref of each sampled token: unbiased, the one that belongs in the reward."""
    return logp - reference_logp


def kl_k3(logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    """exp(-d) - 1 + d with d = log pi/pi_ref: non-negative and low in variance, for logging."""
    log_ratio = reference_logp - logp
    return jnp.expm1(log_ratio) - log_ratio


def gae(
    reward_BR: jax.Array, value_BR: jax.Array, mask_BR: jax.Array, discount: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and returns of replies that end after their last real token.

    delta_r = reward_r + discount * value_{r+1} - value_r; advantage_r = delta_r + discount * lam * advantage_{r+1}
    (Schulman et al. 2016, eq. 11 and 16), with value and advantage 0 after the end. Real tokens are a prefix of a row.

    Returns:
      advantage_BR and return_BR = advantage + value, both 0 on padding.
    """
    require_float(reward_BR=reward_BR, value_BR=value_BR)
    value_BR = jnp.where(mask_BR, value_BR, 0.0)
    next_BR = jnp.pad(value_BR, ((0, 0), (0, 1)))[:, 1:]
    delta_BR = jnp.where(mask_BR, reward_BR + discount * next_BR - value_BR, 0.0)

    def back(following_B, now):
        delta_B, mask_B = now
        advantage_B = jnp.where(mask_B, delta_B + discount * lam * following_B, 0.0)
        return advantage_B, advantage_B

    _, advantage_RB = lax.scan(back, jnp.zeros_like(delta_BR[:, 0]), (delta_BR.T, mask_BR.T), reverse=True)
    return advantage_RB.T, jnp.where(mask_BR, advantage_RB.T + value_BR, 0.0)


def policy_loss(logp: jax.Array, old_logp: jax.Array, advantage: jax.Array, clip: float) -> tuple[jax.Array, jax.Array]:
    """Clipped surrogate per token, to be minimised (Schulman et al. 2017, eq. 7), and whether the clip was active."""
    ratio = jnp.exp(logp - old_logp)
    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.maximum(plain, clipped), clipped > plain


def value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: float) -> tuple[jax.Array, jax.Array]:
    """Half squared error per token, the larger of the plain and the clipped, and whether the clip was active."""
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    plain, clipped = jnp.square(value - target), jnp.square(near - target)
    return 0.5 * jnp.maximum(plain, clipped), clipped > plain


def approximate_kl(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
    """KL(old || new) per token sampled from the old policy, by k3."""
    log_ratio = logp - old_logp
    return jnp.expm1(log_ratio) - log_ratio


def adapt_kl_coefficient(
    coefficient: jax.Array,
    kl: jax.Array,
    target: float,
    replies: int | jax.Array,
    horizon: float,
    error_clip: float = 0.2,
) -> jax.Array:
    """The next KL coefficient (Ziegler et al. 2019, 2.2): coefficient * (1 + clip(kl/target - 1) replies/horizon).

    Args:
      coefficient: the present one.
      kl: measured KL, nats a reply.
      target: wished-for KL, nats a reply; positive.
      replies: episodes in this iteration.
      horizon: in episodes.
      error_clip: bound of the proportional error, both sides.
    """
    error = jnp.clip(kl / target - 1.0, -error_clip, error_clip)
    return coefficient * (1.0 + error * replies / horizon)


def explained_variance(value: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) over the real tokens; 0 where the target does not vary."""
    variance = masked_variance(target, mask)
    there = varies(target, mask) & (variance > 0)
    return jnp.where(there, 1.0 - masked_variance(target - value, mask) / jnp.where(there, variance, 1.0), 0.0)
