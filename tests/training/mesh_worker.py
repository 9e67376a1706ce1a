"""Runs the same two PPO iterations on several meshes and leaves what came out of each; a process of its own.

  mesh_worker.py FOLDER '[[1, 1, 1], [2, 2, 2]]' [COORDINATOR NUMBER COUNT]

Each mesh (data, fsdp, tensor) takes the first devices it needs. Writes FOLDER/<data>-<fsdp>-<tensor>-<processes>.npz
with parameters, Adam's moments and metrics after each iteration, and a .json with what is not laid out as the rules
say. The tables are padded for tensor=4 on every mesh, so that all start from the same numbers.
"""

import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

compiled: list[str] = []  # events since it was last cleared


def run(folder: pathlib.Path, shape: list[int]) -> Iterator[None]:
    """Two iterations; then, when all meshes have made theirs, the second again from each other mesh's first."""
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding
    from tiny_task import fresh_models, make_task, tiny_config

    from crs_jax.inputs.contexts import contexts_at
    from crs_jax.rl.contexts import take
    from crs_jax.rl.reward import Normaliser
    from crs_jax.runtime.checkpoint import Checkpoints, Saved, digest
    from crs_jax.runtime.sharding import AXES, path_name, place, shard_batch, spec_of
    from crs_jax.training.optimizer import Rates, make_optimizer
    from crs_jax.training.ppo import first_extra, make_iteration
    from crs_jax.training.ppo_stage import build
    from crs_jax.training.state import fresh_state

    devices = jax.devices()[: np.prod(shape)]
    mesh = jax.make_mesh(tuple(shape), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
    own = folder / f"process-{jax.process_index()}"
    config = tiny_config(
        own, mesh__tensor=4, ppo__contexts=16, ppo__clip=0.02, ppo__act_kl_target=1.0, ppo__word_kl_target=1.0
    )
    task = make_task(own, config, mesh)
    sft, reward = fresh_models(task)
    graphs, params, frozen_models = build(task, sft, reward)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)  # away from the reference, so that the KL is not 0
    moved = [np.asarray(rng.normal(0, 0.03, leaf.shape), np.float32) for leaf in leaves]
    params = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))(params, place(jax.tree.unflatten(tree, moved), mesh))

    updates = config.ppo.epochs * config.ppo.minibatches * 2
    optimizer = make_optimizer(Rates(1e-3, config.ppo.weight_decay), 0.1, updates, config.ppo.clip_norm)
    state = fresh_state(params, optimizer, mesh, first_extra(0.1, 0.1, 0.2))
    iteration = make_iteration(graphs, optimizer, config, mesh)
    normaliser = Normaliser(jnp.zeros(3), jnp.array([0.5, 0.2, 0.5]), jnp.float32(1.5))
    contexts = contexts_at(task, "train", task.replies("train"))
    misplaced: dict[str, list[str]] = {}

    def check(name: str, tree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            wanted = NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh))
            if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim):
                misplaced.setdefault(name, []).append(f"{path_name(path)}: {leaf.sharding}, not {wanted.spec}")

    check("start", (state.params, state.opt_state))
    check(
        "frozen models",
        (frozen_models.reference, frozen_models.frozen, frozen_models.reward, frozen_models.reward_frozen),
    )
    out, programs = {}, []

    def note(label: str, tree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(multihost_utils.process_allgather(tree, tiled=True)):
            out[f"{label}/" + jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)

    def iterate(state, number: int, label: str):
        batch = shard_batch(take(contexts, np.arange(16) + 16 * number), mesh)
        compiled.clear()
        state, metrics = iteration(state, frozen_models, normaliser, batch, jax.random.key(5))
        programs.append(len(compiled))
        check(f"after {label}", (state.params, state.opt_state))
        note(label, (state.params, state.opt_state, state.extra, metrics))
        return state

    def go_on(checkpoints: Checkpoints, label: str) -> None:
        """The second iteration from what another mesh saved after the first."""
        loaded = checkpoints.restore(1, "state", jax.tree.map(jnp.zeros_like, state))
        check(f"loaded {label}", (loaded.params, loaded.opt_state))
        note(f"{label}/1", (loaded.params, loaded.opt_state, loaded.extra))
        iterate(loaded, 2, f"{label}/2")

    state = iterate(state, 1, "1")
    if jax.process_count() == 1:
        with Checkpoints(folder / f"kept-{len(devices)}", "ppo", config) as checkpoints:
            checkpoints.save(Saved(step=1, done=False, state=state, result={"policy": state.params["policy"]}))
    state = iterate(state, 2, "2")
    yield
    others = [devices for devices in json.loads(sys.argv[2]) if devices != shape] if jax.process_count() == 1 else []
    for other in others:
        with Checkpoints(folder / f"kept-{np.prod(other)}", "ppo", config) as checkpoints:
            go_on(checkpoints, f"from {np.prod(other)}")
    words = state.params["policy"]["words"]
    facts = {
        "misplaced": misplaced,
        "programs": programs,
        "digest": digest(sft[1]),
        "words_shard": [*words.addressable_shards[0].data.shape],
        "residual_shard": [*state.params["policy"]["items"]["residual"].addressable_shards[0].data.shape],
    }
    if jax.process_index() == 0:
        name = "-".join(map(str, [*shape, jax.process_count()]))
        np.savez(folder / f"{name}.npz", **out)
        (folder / f"{name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[3], num_processes=int(sys.argv[5]), process_id=int(sys.argv[4]))
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiled.append(event) if "backend_compile" in event else None
    )
    runs = [run(pathlib.Path(sys.argv[1]), wanted) for wanted in json.loads(sys.argv[2])]
    for _ in range(2):
        for each in runs:
            next(each, None)
