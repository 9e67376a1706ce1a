"""The policy with its value function."""

from __future__ import annotations

import jax
from flax import nnx
from jax import lax

from crs_jax.models.heads import ValueHead
from crs_jax.models.policy import Policy

VALUES = ("shared", "detached", "separate")


class ActorCritic(nnx.Module):
    """A policy and a value head.

    Args:
      policy: the actor.
      value: `shared`: the head reads the policy's hidden states; `detached`: likewise, but its loss does not move the
        policy; `separate`: it reads those of a trunk of its own.
      critic: that trunk, policy-shaped, for `separate`.
    """

    def __init__(self, policy: Policy, value: str, critic: Policy | None = None):
        if value not in VALUES:
            raise ValueError(f"value is {value!r}, expected one of {VALUES}")
        if (critic is not None) != (value == "separate"):
            raise ValueError(f"value {value!r} with{'out' if critic is None else ''} a critic")
        self.value = value
        self.policy = policy
        self.critic = critic
        self.head = ValueHead(policy.width)

    def values(self, hidden: jax.Array) -> jax.Array:
        """Values `[...]` of normalised states `[..., D]`: the policy's, or the critic's where it is separate."""
        return self.head(lax.stop_gradient(hidden) if self.value == "detached" else hidden)
