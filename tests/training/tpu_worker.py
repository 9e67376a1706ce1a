"""Compiles the fused PPO iteration of configs/redial_ppo.py for eight TPU v5e chips, ahead of time and without a TPU.

  tpu_worker.py DATA FSDP TENSOR

Everything is a shape: no array of GPT-2 medium's size is ever made. Prints one JSON line: bytes per chip, and each
collective with the type of its result. Needs libtpu.
"""

import collections
import json
import os
import re
import sys

os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "TPU_ACCELERATOR_TYPE": "v5litepod-8"})
os.environ.update({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"})

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs.redial_ppo import get_config
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.policy import Layout, Policy
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.sharding import AXES, BATCH, shardings
from crs_jax.training.contexts import Contexts
from crs_jax.training.judging import Graphs, Judges
from crs_jax.training.optimizer import make_optimizer
from crs_jax.training.ppo import make_iteration
from crs_jax.training.state import TrainState
from crs_jax.training.task import model_config, split_model

WORDS, ITEMS, EMBEDDING = 50257, 6924, 384
GENRES, FACETS, ASKED = 27, 41, 62


def abstract(build):
    """Graph definition and shapes of a model that is never made."""
    kept = []

    def shapes():
        graphdef, *arrays = split_model(build())
        kept.append(graphdef)
        return arrays

    arrays = jax.eval_shape(shapes)
    return kept[0], *arrays


def laid(tree, mesh: Mesh, layout=None):
    """The shapes with where they lie: by the rules, or all alike."""
    where = shardings(tree, mesh) if layout is None else jax.tree.map(lambda _: NamedSharding(mesh, layout), tree)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where)


def compiled(shape: tuple[int, int, int]):
    config = get_config()
    config.mesh.update(dict(zip(AXES, shape, strict=True)))
    layout = Layout(
        num_words=WORDS, item_offset=WORDS + 6, num_items=ITEMS, act_items=config.data.act_items,
        pad=WORDS, seeker=WORDS + 1, recommender=WORDS + 2, rec=WORDS + 3, say=WORDS + 4, end=WORDS + 5,
        unused=(WORDS - 1,),
    )  # fmt: skip

    def policy() -> Policy:
        content_NE, facets_NF = np.zeros((ITEMS, EMBEDDING), np.float32), np.zeros((ITEMS, FACETS), np.float32)
        rngs = nnx.Rngs(params=jax.random.key(0))
        known = (content_NE, None, facets_NF, GENRES, ASKED)
        return Policy(model_config(config), layout, *known, rngs=rngs, pad_to=128 * config.mesh.tensor)

    policy_graph, reference, frozen = abstract(policy)
    actor_graph, params, _ = abstract(lambda: ActorCritic(policy(), config.model.value))
    reward_graph, reward, reward_frozen = abstract(lambda: RewardModel(policy()))

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
    c, whole = config.ppo, PartitionSpec()
    optimizer = make_optimizer(c.learning_rate, c.warmup, 100, c.weight_decay, c.clip_norm)

    def start(params):
        extra = {"act_kl": jnp.float32(0), "word_kl": jnp.float32(0)}
        return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.asarray(False), extra)

    def floats(*axes):
        return jax.ShapeDtypeStruct(axes, jnp.float32)

    judges = Judges(
        laid(reference, mesh), laid(reward, mesh), laid(frozen, mesh), laid(reward_frozen, mesh),
        laid(floats(ITEMS, EMBEDDING), mesh, whole), laid(floats(3), mesh, whole),
    )  # fmt: skip
    prompts = (c.contexts, config.data.context_tokens)
    contexts = Contexts(
        jax.ShapeDtypeStruct(prompts, jnp.int32), jax.ShapeDtypeStruct(prompts, bool),
        floats(c.contexts, EMBEDDING), floats(c.contexts, EMBEDDING), jax.ShapeDtypeStruct((c.contexts, 32), jnp.int32),
        jax.ShapeDtypeStruct((c.contexts, 32), jnp.int32), floats(c.contexts, ASKED),
        jax.ShapeDtypeStruct((c.contexts, 512), jnp.int32), floats(c.contexts, 512),
        jax.ShapeDtypeStruct((c.contexts, 48), jnp.int32), floats(c.contexts, 48),
    )  # fmt: skip
    iteration = make_iteration(Graphs(actor_graph, policy_graph, reward_graph), optimizer, config, mesh)
    lowered = iteration.lower(
        laid(jax.eval_shape(start, params), mesh),
        judges,
        laid(Normaliser(floats(3), floats(3), floats()), mesh, whole),
        laid(contexts, mesh, BATCH),
        laid(jax.eval_shape(lambda: jax.random.key(0)), mesh, whole),
    )
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return lowered.compile(), count


def collectives(text: str) -> list[tuple[str, str, int]]:
    """(operation, type of one result, times it stands in the program), the largest first."""
    found = collections.Counter()
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
    for line in text.splitlines():
        match = re.search(pattern, line)
        if match:
            for result in set(re.findall(r"\w+\[[\d,]*\]", match[1])):
                found[match[2], result] += 1
    size = {key: np.prod([int(n) for n in re.findall(r"\d+", key[1].split("[")[1])]) for key in found}
    return [(*key, found[key]) for key in sorted(found, key=lambda key: -size[key])]


if __name__ == "__main__":
    program, parameters = compiled(tuple(map(int, sys.argv[1:])))
    memory = program.memory_analysis()
    names = ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes", "temp_size_in_bytes")
    facts = {name.removesuffix("_size_in_bytes"): getattr(memory, name) for name in names}
    facts |= {"code": memory.generated_code_size_in_bytes, "parameters": parameters}
    print(json.dumps({**facts, "collectives": collectives(program.as_text())}))
