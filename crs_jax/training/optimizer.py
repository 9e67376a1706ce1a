"""AdamW with warm-up, linear decay and a clipped gradient norm; the rate and weight decay of every parameter by name.

One rule for all stages: a parameter's rate is the stage's `learning_rate` times a multiple, that of its group, and its
weight decay is the stage's, of its kind. What a pretrained model brings, words and trunk, has the multiple 1; what is
new beside it (controls, items, decisions, heads) `new_rate`; the query, which is fitted before SFT, `query_rate` of
that. In PPO the query has `query_rate`, what else slates alone are read off `slate_rate`, and the value function's
head `value_rate`.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from crs_jax.runtime.progress import print_table
from crs_jax.runtime.sharding import path_name

# Name, less `policy/` or `critic/` before it: group and kind of decay. A name that is not here has no rate; those of a
# trunk are the decoder's, pretrained all of them, and `matrix` where they end in `_kernel`.
PARAMETERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("words", "output"), ("pretrained", "matrix")),
    "controls": ("new", "matrix"),
    "items/projection": ("new", "matrix"),
    "items/residual": ("new", "item"),
    "items/bias": ("slate", "item"),
    "decisions/kernel": ("new", "matrix"),
    **{f"decisions/{name}": ("new", "none") for name in ("end_bias", "own_bias")},
    **dict.fromkeys(("decisions/state_kernel", "query/hidden_kernel"), ("slate", "matrix")),
    "decisions/say_bias": ("slate", "none"),
    **{f"query/{name}_kernel": ("query", "matrix") for name in ("text", "asked", "match", "named", "attention")},
    "query/role_scale": ("query", "matrix"),
    **{f"query/{name}_match": ("query", "none") for name in ("asked", "named")},
    **{f"query/{name}": ("gain", "none") for name in ("gain", "gate", "named_gain", "attention_bias", "attention_age")},
    **{f"heads/{name}": ("new", "matrix") for name in ("kernel", "feature_kernel")},
    "heads/bias": ("new", "none"),
    "head/kernel": ("value", "matrix"),
    "head/bias": ("value", "none"),
}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of one stage.

    Attributes:
      learning_rate: of what a pretrained model brings, at its highest.
      weight_decay: of matrices and tables.
      item_decay: of what is learnt of single items; None: as matrices.
      new, slate, query, gain, value: multiples of `learning_rate`.
    """

    learning_rate: float
    weight_decay: float = 0.0
    item_decay: float | None = None
    new: float = 1.0
    slate: float = 1.0
    query: float = 1.0
    gain: float = 1.0
    value: float = 1.0

    def of(self, name: str) -> tuple[float, float]:
        """The multiple and the weight decay of a parameter; `KeyError` where no rule has its name."""
        own = name.removeprefix("policy/").removeprefix("critic/")
        of_trunk = ("pretrained", "matrix" if own.endswith("_kernel") else "none")
        group, kind = of_trunk if own.startswith("trunk/") else PARAMETERS[own]
        item_decay = self.weight_decay if self.item_decay is None else self.item_decay
        decay = {"matrix": self.weight_decay, "item": item_decay, "none": 0.0}[kind]
        return 1.0 if group == "pretrained" else getattr(self, group), decay

    def show(self, stage: str, params: Any) -> None:
        """Prints the rate and weight decay of each parameter, those of one module that share them in one row."""
        found: dict[tuple[str, float, float], list[str]] = {}
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            module, _, name = path_name(path).rpartition("/")
            found.setdefault((module, *self.of(path_name(path))), []).append(name)
        rows = [
            [line, f"{multiple * self.learning_rate:.1e}", f"{decay:g}"]
            for (module, multiple, decay), names in found.items()
            for line in textwrap.wrap(
                f"{module}: {', '.join(names)}" if module else ", ".join(names), 56, subsequent_indent="  "
            )
        ]
        print_table(f"{stage}: rates at their highest", ["parameters", "rate", "decay"], rows)


def head_rates(c: ConfigDict) -> Rates:
    """Of the query and the items' biases, fitted by themselves before SFT, by `config.head`."""
    return Rates(c.learning_rate, c.weight_decay, gain=c.gain_rate / c.learning_rate)


def sft_rates(config: ConfigDict) -> Rates:
    """Of SFT."""
    c = config.sft
    query = c.new_rate * c.query_rate
    return Rates(
        c.learning_rate, c.weight_decay, c.item_decay, new=c.new_rate, slate=c.new_rate, query=query, gain=query
    )


def seeker_rates(config: ConfigDict) -> Rates:
    """Of the user simulator: those of SFT at its own learning rate."""
    return dataclasses.replace(sft_rates(config), learning_rate=config.seeker.learning_rate)


def reward_rates(config: ConfigDict) -> Rates:
    """Of the reward model."""
    c = config.reward
    n = c.new_rate
    return Rates(c.learning_rate, c.weight_decay, new=n, slate=n, query=n, gain=n)


def ppo_rates(config: ConfigDict) -> Rates:
    """Of PPO."""
    c = config.ppo
    q = c.query_rate
    return Rates(c.learning_rate, c.weight_decay, slate=c.slate_rate, query=q, gain=q, value=c.value_rate)


def schedule(learning_rate: float, warmup: float, steps: int, end: float = 0.1) -> optax.Schedule:
    """Linear up to `learning_rate` over the share `warmup` of the steps, then linear to the share `end` of it."""
    rise = max(round(warmup * steps), 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(learning_rate / rise, learning_rate, rise),
            optax.linear_schedule(learning_rate, end * learning_rate, max(steps - rise, 1)),
        ],
        [rise],
    )


def by_name(of: Callable[[str], tuple[float, float]]) -> optax.GradientTransformation:
    """Adds weight decay to each parameter's update and multiplies it, by what `of` says of its name."""

    def update(updates: Any, params: Any) -> Any:
        def one(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            multiple, decay = of(path_name(path))
            return multiple * (u + decay * p)

        return jax.tree_util.tree_map_with_path(one, updates, params)

    return optax.stateless(update)


def scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by `-rate` at update `number`, passed to `optimizer.update`.

    A count of its own, taken where no number is given, counts the updates that were made: those that a stage leaves out
    would hold the schedule up.
    """

    def update(updates: Any, state: Any, params: Any = None, *, number: jax.Array | None = None, **_: Any):
        number = state.count if number is None else number
        step = -rate(number)
        scaled = jax.tree.map(lambda u: jnp.asarray(step, u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def make_optimizer(
    rates: Rates, warmup: float, steps: int, clip_norm: float, end: float = 0.1
) -> optax.GradientTransformation:
    """The optimizer of a stage of `steps` updates. `end`: of `schedule`."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        by_name(rates.of),
        scale_by_rate(schedule(rates.learning_rate, warmup, steps, end)),
    )
