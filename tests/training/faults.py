"""Faults switched on while a compiled PPO runs, so that one compilation serves the tests of all checks and guards.

`install` patches the names that the iteration uses; each patch reads its strength from `Faults` through a host
callback when the program runs. With all faults off the numbers are those of the unpatched program. What was compiled
once stays in `made`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from crs_jax.training import advantages, ppo, ppo_stage, rollout, score, update


@dataclasses.dataclass
class Faults:
    """Strength of each fault; a callable is asked each time it is met."""

    reference_temperature: float = 1.0  # factor on the temperature, reference policy alone
    sampler_temperature: float = 1.0  # factor on the temperature, sampler alone
    same_draws: float = 0.0  # 1: the sampler does not use its key
    same_key: bool = False  # the run's key is not folded with the step
    old_logp: float = 0.0  # added to the log-probs that the updates compare with
    reward: float | Callable[[], float] = 0.0  # added to every token's reward
    loss: float | Callable[[], float] = 0.0  # added to the loss
    gradient: float | Callable[[], float] = 0.0  # added to the gradient, which leaves the loss as it is

    def reset(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, field.default)

    def read(self, name: str) -> jax.Array:
        def now() -> np.ndarray:
            value = getattr(self, name)
            return np.float32(value() if callable(value) else value)

        return io_callback(now, jax.ShapeDtypeStruct((), jnp.float32))


def at(calls: range | set[int]) -> Callable[[], float]:
    """NaN at the given calls, counted from 0; else 0."""
    met = iter(range(10**9))
    return lambda: float("nan") if next(met) in calls else 0.0


@jax.custom_vjp
def with_gradient(x, extra):
    return x


with_gradient.defvjp(lambda x, extra: (x, extra), lambda extra, g: (g + extra, jnp.zeros_like(extra)))


def install(patch: pytest.MonkeyPatch, faults: Faults, made: dict[str, Callable]) -> None:
    """Patches the PPO stage; every run shares the compiled iteration and reference sampler of the first."""
    sample, policy_pass, experience = rollout.sample, score.policy_pass, advantages.Experience
    rewards, value_loss = advantages.token_rewards, update.ppo.value_loss
    make_iteration, make_reference_signals = ppo.make_iteration, ppo.make_reference_signals

    def faulty_sample(policy, prompt, mask, key, *, temperature, **more):
        fixed, given = jax.random.key_data(jax.random.key(7)), jax.random.key_data(key)
        key = jax.random.wrap_key_data(jnp.where(faults.read("same_draws") > 0, fixed, given))
        return sample(policy, prompt, mask, key, temperature=temperature * faults.read("sampler_temperature"), **more)

    def faulty_pass(*arguments):
        *first, temperature = arguments
        return policy_pass(*first, temperature * faults.read("reference_temperature"))

    def faulty_experience(*fields):
        made_of = experience(*fields)
        return made_of._replace(logp_CGR=made_of.logp_CGR + faults.read("old_logp"))

    def faulty_value_loss(value, *more):
        loss, clipped = value_loss(with_gradient(value, faults.read("gradient")), *more)
        return loss + faults.read("loss"), clipped

    def shared_iteration(*arguments):
        iteration = made["iteration"] = made.get("iteration") or make_iteration(*arguments)
        return lambda state, *more: iteration(
            state._replace(step=jnp.zeros_like(state.step)) if faults.same_key else state, *more
        )

    def shared_sampler(*arguments):
        made["sampler"] = made.get("sampler") or make_reference_signals(*arguments)
        return made["sampler"]

    patch.setattr(rollout, "sample", faulty_sample)
    patch.setattr(ppo, "sample", faulty_sample)
    patch.setattr(score, "policy_pass", faulty_pass)
    patch.setattr(advantages, "Experience", faulty_experience)
    patch.setattr(advantages, "token_rewards", lambda *arguments: rewards(*arguments) + faults.read("reward"))
    patch.setattr(update.ppo, "value_loss", faulty_value_loss)
    patch.setattr(ppo_stage, "make_iteration", shared_iteration)
    patch.setattr(ppo_stage, "make_reference_signals", shared_sampler)
