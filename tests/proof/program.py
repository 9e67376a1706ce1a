"""What the method computes from fixed arrays: forward pass, ranking, one step of each stage, one iteration of PPO.

`baseline.npz` holds the arrays that went in and what came out at commit 1028781, before the core was rebuilt.

  python tests/proof/program.py FILE.npz     # of the code as it is, from the inputs in baseline.npz
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "training"))

from tiny_task import fresh_models, make_task, tiny_config  # noqa: E402

from crs_jax.features.context import ContextFeatures  # noqa: E402
from crs_jax.inputs.contexts import contexts_at  # noqa: E402
from crs_jax.inputs.features import of_split  # noqa: E402
from crs_jax.inputs.labels import label  # noqa: E402
from crs_jax.inputs.replies import reply_arrays  # noqa: E402
from crs_jax.rl.contexts import (  # noqa: E402
    Contexts,
    after_rec,
    take,
)
from crs_jax.rl.reward import Normaliser  # noqa: E402
from crs_jax.rl.scoring import reply_likelihood, tree_hidden  # noqa: E402
from crs_jax.runtime.sharding import place, shard_batch  # noqa: E402
from crs_jax.training import reward as reward_stage  # noqa: E402
from crs_jax.training import sft as sft_stage  # noqa: E402
from crs_jax.training.optimizer import Rates, make_optimizer  # noqa: E402
from crs_jax.training.ppo import first_extra, make_iteration  # noqa: E402
from crs_jax.training.ppo_stage import build  # noqa: E402
from crs_jax.training.state import fresh_state  # noqa: E402

BASELINE = HERE / "baseline.npz"
RENAMED: dict[str, str] = {}
"""What a name within the stored arrays is called now: the converter."""

VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "group_baseline": {"ppo__group_baseline": True},
    "rloo": {"algorithm": "rloo", "ppo__group_baseline": True},
    "grpo": {"algorithm": "grpo", "ppo__group_baseline": True, "ppo__all_acts": 0},
    "raft": {"algorithm": "raft", "ppo__group_baseline": True, "ppo__all_acts": 0},
    "rankwise": {"algorithm": "rankwise", "ppo__lists": 4, "ppo__list_items": 3},
    "tilt": {"algorithm": "tilt", "ppo__group_baseline": True},
    "sampled": {"ppo__all_acts": 0, "ppo__slate_batches": 1},
    "shuffled": {"ppo__shuffled_rewards": True},
    "separate": {"model__value": "separate", "ppo__value_warmup": 1},
    "accumulate": {"ppo__accumulate": 2, "ppo__minibatches": 1},
    "learned_relevance": {"reward__relevance": "learned", "ppo__act_entropy": 0.01, "ppo__word_entropy": 0.01},
}
"""Settings beside `tiny_config`; the first in every run of the tests, the others in the slow ones."""


def flat(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Leaves by their paths."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{prefix}/" + jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(leaf) for p, leaf in paths}


def stored(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Arrays under a prefix by the rest of their names, as they are called now."""
    found = {name.removeprefix(f"{prefix}/"): a for name, a in arrays.items() if name.startswith(f"{prefix}/")}
    for old, new in RENAMED.items():
        found = {name.replace(old, new): a for name, a in found.items()}
    return found


def nested(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts of arrays by path."""
    out: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        at = out
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = array
    return out


def world(folder: pathlib.Path, **changes: Any):
    """The task, and graph definitions of the policy and the reward model."""
    task = make_task(folder, tiny_config(folder, **changes))
    (policy, *_), (reward, *_) = fresh_models(task)
    return task, policy, reward


def inputs(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What the baseline was made from: parameters away from their first values, batches and contexts."""
    task = make_task(folder, tiny_config(folder))
    (_, params, frozen), (_, reward, reward_frozen) = fresh_models(task)
    rng = np.random.default_rng(3)

    def moved(tree: Any) -> Any:
        return jax.tree.map(lambda a: np.asarray(a + rng.normal(0, 0.03, a.shape), np.float32), tree)

    params, reward = moved(params), moved(reward)
    _, rows = next(sft_stage.batches(sft_stage.make_packer(task, "train"), task, "sft", 4, 0.5))
    split_features = of_split(task, "train")
    signal_DTS = label(task, "train").signal_DTS
    every = np.arange(len(task.corpus.train))
    labelled = reward_stage.slot_labels(task, rows, every, signal_DTS, split_features)
    where = task.replies("train")[:50]
    contexts = contexts_at(task, "train", where)
    replies = reply_arrays(task, "train", where[:8])
    return {
        **flat(params, "sft"), **flat(frozen, "frozen"), **flat(reward, "reward"),
        **flat(reward_frozen, "reward_frozen"), **flat(sft_stage.with_features(rows, split_features), "sft_rows"),
        **flat(labelled, "reward_rows"), **flat(contexts._asdict(), "contexts"),
        "replies/tokens": replies[0], "replies/mask": replies[1],
    }  # fmt: skip


FEATURES = {
    "text": "text_CE", "asked": "asked_CZ", "named": "named_CX", "by_recommender": "by_recommender_CX",
    "neighbours": "near_CK", "nearness": "nearness_CK", "with_people": "starring_CS", "people_matches": "stars_CS",
    "named_mean": "named_CE",
}  # fmt: skip
"""Features of contexts by their names in the stored arrays; in rows these have `RA` for `C`."""


def contexts_of(arrays: dict[str, np.ndarray]) -> Contexts:
    """The stored contexts."""
    old = stored(arrays, "contexts")
    features = ContextFeatures(**{name: old[was] for name, was in FEATURES.items()})
    return Contexts(old["prompt_CP"], old["mask_CP"], features)


def rows_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Stored rows."""
    rows: dict[str, Any] = stored(arrays, prefix)
    names = {name: was.replace("_C", "_RA") for name, was in FEATURES.items() if name != "named_mean"}
    known = {name: rows.pop(was) for name, was in names.items() if was in rows}
    return {**rows, "features": ContextFeatures(**known)} if known else rows


def models(arrays: dict[str, np.ndarray], task: Any, policy: Any, reward: Any) -> tuple[Any, Any]:
    """SFT policy and reward model of the stored parameters, on the mesh."""
    names = (("sft", "frozen"), ("reward", "reward_frozen"))
    trees = [[place(nested(stored(arrays, name)), task.mesh) for name in pair] for pair in names]
    return (policy, *trees[0]), (reward, *trees[1])


def forward(arrays: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Log-probabilities of stored replies, and item logits of fifty contexts."""
    task, *graphs = world(folder)
    (graph, params, frozen), _ = models(arrays, task, *graphs)
    contexts = contexts_of(arrays)
    some, policy = take(contexts, np.arange(8)), nnx.merge(graph, params, frozen)
    tokens_BR, mask_BR = jnp.asarray(arrays["replies/tokens"]), jnp.asarray(arrays["replies/mask"])
    hidden = tree_hidden(
        policy, policy.tables(), some.prompt_CP, some.mask_CP, tokens_BR[:, None], mask_BR[:, None]
    ).before[:, 0]
    item_query = policy.item_query(some.features)
    found = reply_likelihood(policy, policy.tables(), hidden, tokens_BR, mask_BR, item_query=item_query)
    last_CD, tables, item_query = after_rec(policy, contexts)
    logits_CN = policy.item_logits(policy.acting(last_CD, item_query), tables, item_query.beside)[
        :, : task.layout.num_items
    ]
    return {
        "forward/logp": np.where(arrays["replies/mask"], found.logp_BR, 0.0),
        "forward/entropy": np.where(arrays["replies/mask"], found.entropy_BR, 0.0),
        "ranking/logits": np.asarray(logits_CN),
    }


def supervised(arrays: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """One SFT step and one reward step from fresh optimizers; `before` are the parameters before it."""
    task, *graphs = world(folder)
    of_sft, of_reward = models(arrays, task, *graphs)
    out = {}
    for name, stage, (graph, params, frozen), rows in (
        ("sft", sft_stage, of_sft, "sft_rows"), ("reward", reward_stage, of_reward, "reward_rows"),
    ):  # fmt: skip
        optimizer = make_optimizer(Rates(1e-3, 0.01), 0.1, 10, 1.0)
        out |= flat(params, f"{name}_step/before")
        state = fresh_state(params, optimizer, task.mesh)
        batch = shard_batch(rows_of(arrays, rows), task.mesh)
        state, metrics = stage.make_step(graph, optimizer, task)(state, frozen, batch, jax.random.key(7))
        out |= flat(state.params, f"{name}_step/params") | flat(metrics, f"{name}_step/metrics")
    return out


def iteration(arrays: dict[str, np.ndarray], folder: pathlib.Path, variant: str) -> dict[str, np.ndarray]:
    """The second iteration of PPO: parameters are no longer the reference's, and stand in `before`."""
    task, *graphs = world(folder, **VARIANTS[variant])
    of_sft, of_reward = models(arrays, task, *graphs)
    graphs, params, frozen_models = build(task, of_sft, of_reward)
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.02, a.shape), jnp.float32), params)
    before = flat(params, f"iteration/{variant}/before")
    optimizer = make_optimizer(Rates(1e-3, 0.01), 0.1, 10, 1.0)
    state = fresh_state(params, optimizer, task.mesh, first_extra(0.1, 0.15, 0.2))
    normaliser = Normaliser(jnp.array([0.1, 0.0, -0.1]), jnp.array([0.5, 0.2, 0.5]), jnp.float32(1.5))
    count = task.config.ppo.contexts * task.config.ppo.slate_batches
    contexts = take(contexts_of(arrays), np.arange(count))
    step = make_iteration(graphs, optimizer, task.config, task.mesh)
    state, metrics = step(state, frozen_models, normaliser, shard_batch(contexts, task.mesh), jax.random.key(5))
    return before | flat({"params": state.params, "extra": state.extra, "metrics": metrics}, f"iteration/{variant}")


def summary(name: str, array: np.ndarray) -> np.ndarray:
    """Of parameters after an iteration of another variant than the first: projections instead of all numbers."""
    rng = np.random.default_rng(len(name))
    flat_n = array.astype(np.float64).ravel()
    return np.array([*(rng.normal(size=flat_n.shape) @ flat_n for _ in range(3)), flat_n.sum(), np.abs(flat_n).max()])


def summarised(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With `summary` in place of parameters."""
    of = {name: name.replace("/before/", "/params/") for name in made}  # the same projections before and after
    return {name: summary(of[name], a) if "/params/" in of[name] else a for name, a in made.items()}


def outputs(arrays: dict[str, np.ndarray], variants: list[str]) -> dict[str, np.ndarray]:
    """All that is compared."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        out = forward(arrays, folder) | supervised(arrays, folder)
        for variant in variants:
            made = iteration(arrays, folder, variant)
            if variant != next(iter(VARIANTS)):
                made = summarised(made)
            out |= made
    return {f"out/{name}": array for name, array in out.items() if "/before/" not in name}


if __name__ == "__main__":
    if BASELINE.exists():
        given = dict(np.load(BASELINE))
        given = {name: a for name, a in given.items() if not name.startswith("out/")}
    else:
        with tempfile.TemporaryDirectory() as name:
            given = inputs(pathlib.Path(name))
    np.savez_compressed(sys.argv[1], **given, **outputs(given, list(VARIANTS)))
