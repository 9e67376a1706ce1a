"""Which settings decide the result of a stage, so that a checkpoint of others is not taken for this run's."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# What decides a stage's result: its own sections and those of the stages before it.
SECTIONS = {
    "sft": ("head", "seed", "data", "simulator", "tokenizer", "encoder", "model", "mesh", "sft"),
    "reward": ("signals", "reward"),
    "seeker": ("seeker",),  # the first part of the stage ppo, where it has several turns
    "ppo": ("ppo", "algorithm"),
}
# Settings that may change without touching a stage's result.
REWARD_ALONE = ("alpha", "beta", "gamma", "delta", "function", "clip", "relevance", "spread")  # but that of PPO
FREE = {
    "sft": (
        *("data.cache_dir", "data.dir", "data.metadata", "data.pipeline", "data.on_error", "encoder.batch_tokens"),
        *("model.value", "model.remat", "model.matmul", "model.attention"),
        *("mesh.data", "mesh.fsdp"),  # mesh.tensor sets how far tables are padded
        "model.transfer",  # trains nothing
        "sft.accumulate",  # the same step
    ),
    "reward": tuple(f"reward.{name}" for name in (*REWARD_ALONE, "accumulate")),
    "seeker": (),
    "ppo": ("ppo.accumulate",),
}


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict to `section.field` keys; tuples as lists, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def identity(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The settings that decide the result of `stage`, flat."""
    order = list(SECTIONS)
    flat = flatten(config.to_dict())
    kept: dict[str, Any] = {}
    for earlier in order[: order.index(stage) + 1]:
        free = FREE[earlier]
        if stage == "ppo":  # where the reward's weights and the value function count after all
            counts = ("model.value", *(f"reward.{name}" for name in REWARD_ALONE))
            free = tuple(name for name in free if name not in counts)
        for name, value in flat.items():
            weighs = name.startswith("reward.weights.") and stage != "ppo"
            if name.split(".")[0] in SECTIONS[earlier] and name not in free and not weighs:
                kept[name] = value
    return kept
