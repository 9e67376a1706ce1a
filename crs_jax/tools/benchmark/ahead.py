"""Compiles the fused PPO iteration for TPUs that nobody has at hand: what a chip holds, and what goes over wires."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from crs_jax import flags as command_line
from crs_jax.config import derive, slate_contexts
from crs_jax.data.byte_bpe import GPT2_WORDS
from crs_jax.data.tokenizer import CONTROLS
from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import model_config, split_model
from crs_jax.models.actor_critic import ActorCritic
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.rl.all_acts import Acts
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import FrozenModels, Graphs
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.runtime import source_tree
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json
from crs_jax.runtime.sharding import AXES, BATCH, shardings
from crs_jax.tools.benchmark.cells import make_update_step
from crs_jax.tools.benchmark.hlo import collectives
from crs_jax.tools.benchmark.world import EMBEDDING, GENRES, NAMED, NEAR, STARRING
from crs_jax.training.advantages import Experience, FirstItems
from crs_jax.training.optimizer import make_optimizer, ppo_rates
from crs_jax.training.ppo import first_extra, make_iteration
from crs_jax.training.state import TrainState

FACETS, ASKED = 41, 62  # of ReDial
REDIAL_ITEMS = 6924
FLAGS = {"topology": "v5e:2x4", "chips": "0", "part": "iteration", "items": str(REDIAL_ITEMS), "out": ""}
CHIP_BYTES = {"v5e": 16 * 2**30, "v5p": 95 * 2**30, "v4": 32 * 2**30, "v6e": 32 * 2**30}
"""Memory of a chip, from Google Cloud's pages on each version."""


def abstract(build: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """Graph definition and shapes of a model that is never made."""
    kept = []

    def shapes():
        graphdef, *arrays = split_model(build())
        kept.append(graphdef)
        return arrays

    params, frozen = jax.eval_shape(shapes)
    return kept[0], params, frozen


def laid(tree: Any, mesh: Mesh, layout: PartitionSpec | None = None) -> Any:
    """The shapes with where they lie: by the rules, or all alike."""
    where = shardings(tree, mesh) if layout is None else jax.tree.map(lambda _: NamedSharding(mesh, layout), tree)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where)


def layout_of(config: ConfigDict, items: int) -> Layout:
    """Token ids of the config's tokenizer and a catalogue."""
    words = GPT2_WORDS if config.tokenizer.kind == "gpt2" else config.tokenizer.vocab_size
    pad, seeker, recommender, rec, say, end = range(words, words + len(CONTROLS))
    unused = (GPT2_WORDS - 1,) if config.tokenizer.kind == "gpt2" else ()
    return Layout(
        num_words=words, item_offset=words + len(CONTROLS), num_items=items, act_items=config.data.act_items,
        pad=pad, seeker=seeker, recommender=recommender, rec=rec, say=say, end=end, unused=unused,
    )  # fmt: skip


def refuse_what_is_not_built(config: ConfigDict) -> None:
    """`InputError` for settings that make another program than `lower` does."""
    c, r, m = config.ppo, config.reward, config.model
    others = {
        "model.value": m.value != "separate", "model.leave_out": not m.leave_out, "ppo.turns": c.turns == 1,
        "ppo.evidence": c.evidence == "same", "reward.ensemble": r.ensemble == 1, "reward.function": not r.function,
    }  # fmt: skip
    for name, built in others.items():
        if not built:
            raise InputError(f"--config.{name}: a program with this setting is not compiled ahead; leave it as it is")


class Shapes:
    """Shapes of what a part takes, laid over a mesh; `items` are the catalogue's.

    Attributes:
      parameters: how many learn.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, items: int) -> None:
        self.config, self.mesh, self.layout = config, mesh, layout_of(config, items)
        c, whole = config.ppo, PartitionSpec()

        def policy() -> Policy:
            content_NE, attributes_NF = np.zeros((items, EMBEDDING), np.float32), np.zeros((items, FACETS), np.float32)
            known: Any = (content_NE, None, attributes_NF, GENRES, ASKED)
            rngs = nnx.Rngs(params=jax.random.key(0))
            return Policy(model_config(config), self.layout, *known, rngs=rngs, pad_to=128 * mesh.shape["tensor"])

        policy_graph, reference, frozen = abstract(policy)
        actor_graph, params, _ = abstract(lambda: ActorCritic(policy(), config.model.value))
        reward_graph, reward, reward_frozen = abstract(lambda: RewardModel(policy()))
        self.optimizer = make_optimizer(ppo_rates(config), c.warmup, 100, c.clip_norm)
        self.graphs = Graphs(actor_graph, policy_graph, reward_graph)
        self.parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))

        def start(params):
            start = jnp.int32(0), params, self.optimizer.init(params), jnp.asarray(False), first_extra(0, 0, 0)
            return TrainState(*start)

        self.state = laid(jax.eval_shape(start, params), mesh)
        self.frozen = laid(frozen, mesh)
        self.frozen_models = FrozenModels(
            laid(reference, mesh), laid(reward, mesh), self.frozen, laid(reward_frozen, mesh),
            laid(floats(items, EMBEDDING), mesh, whole), laid(floats(3), mesh, whole),
        )  # fmt: skip
        self.normaliser = laid(Normaliser(floats(3), floats(3), floats()), mesh, whole)
        self.key = laid(jax.eval_shape(lambda: jax.random.key(0)), mesh, whole)

    def contexts(self, count: int) -> Contexts:
        """So many of them."""

        def rows(*axes: int, dtype: Any = jnp.float32) -> Any:
            return jax.ShapeDtypeStruct((count, *axes), dtype)

        length = self.config.data.context_tokens
        made = Contexts(
            rows(length, dtype=jnp.int32), rows(length, dtype=bool),
            ContextFeatures(
                rows(EMBEDDING), rows(ASKED), rows(NAMED, dtype=jnp.int32), rows(NAMED, dtype=jnp.int32),
                rows(NEAR, dtype=jnp.int32), rows(NEAR), rows(STARRING, dtype=jnp.int32), rows(STARRING),
                rows(EMBEDDING),
            ),
        )  # fmt: skip
        return laid(made, self.mesh, BATCH)

    def minibatch(self) -> tuple[FirstItems | None, Experience]:
        """What one update trains on."""
        c = self.config.ppo
        count = c.contexts // c.minibatches
        tokens = [count, c.group, self.config.data.reply_tokens]
        whole_numbers, flags_ = (jax.ShapeDtypeStruct(tokens, kind) for kind in (jnp.int32, bool))
        rows = laid((whole_numbers, flags_, flags_, *[floats(*tokens)] * 5), self.mesh, BATCH)
        fields: Any = (self.contexts(count), *rows)
        return self._first_items(), Experience(*fields)

    def _first_items(self) -> FirstItems | None:
        c = self.config.ppo
        if not c.all_acts:
            return None
        count, A = slate_contexts(self.config) // c.minibatches, min(c.all_acts, self.layout.num_items)
        hidden = jax.ShapeDtypeStruct((count, self.config.model.width), self.config.model.dtype)
        rows: Any = jax.ShapeDtypeStruct((count, A), jnp.int32)
        acts = Acts(rows, floats(count, A), floats(count, A), floats(count, 2), floats(count, A), floats(count, 2))
        hidden, acts = laid((hidden, acts), self.mesh, BATCH)
        return FirstItems(self.contexts(count).features, hidden, acts, None)


def floats(*axes: int) -> Any:
    """The shape of a float32 array."""
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def lower(config: ConfigDict, mesh: Mesh, items: int, part: str = "iteration") -> tuple[Any, int]:
    """The lowered iteration, or update, and how many parameters learn."""
    shapes = Shapes(config, mesh, items)
    made_of = shapes.graphs, shapes.optimizer, config, mesh
    if part == "update":
        lowered = make_update_step(*made_of).lower(shapes.state, shapes.frozen, shapes.minibatch())
    else:
        contexts = shapes.contexts(slate_contexts(config))
        given = shapes.state, shapes.frozen_models, shapes.normaliser, contexts, shapes.key
        lowered = make_iteration(*made_of).lower(*given)
    return lowered, shapes.parameters


def chips(topology: str) -> list[Any]:
    """Devices of a slice that is not there; `InputError` where the compiler is missing or knows no such slice."""
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind not in CHIP_BYTES or not shape:
        raise InputError(f"--topology={topology}: write KIND:SHAPE, v5e:2x4; kinds are {', '.join(CHIP_BYTES)}")
    count = int(np.prod([int(n) for n in shape.split("x")]))
    name = {"v5e": f"v5litepod-{count}", "v5p": f"v5p-{2 * count}", "v4": f"v4-{2 * count}", "v6e": f"v6e-{count}"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of several kinds, by what is missing
        raise InputError(f"--topology={topology}: {error}; libtpu, or TPU_LIBRARY_PATH=FILE, is needed") from None


def described(config: ConfigDict, topology: str, items: int, count: int = 0, part: str = "iteration") -> dict[str, Any]:
    """Compiles, and says what came of it; `count` chips of the slice, 0 for all."""
    refuse_what_is_not_built(config)
    devices = chips(topology)
    if count > len(devices):
        raise InputError(f"--chips={count}: {topology} has {len(devices)}")
    devices = devices[: count or None]
    shape = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    sizes = [s if s > 0 else len(devices) // int(np.prod([t for t in shape if t > 0])) for s in shape]
    if np.prod(sizes) != len(devices):
        raise InputError(f"--config.mesh: data x fsdp x tensor is {sizes}, but there are {len(devices)} chips")
    derive(config, len(devices))
    mesh = jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)
    start = time.monotonic()
    lowered, parameters = lower(config, mesh, items, part)
    program = lowered.compile()
    seconds = time.monotonic() - start
    plan = program.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    held = {name: getattr(plan, f"{name}_size_in_bytes") for name in names}
    held["code"] = plan.generated_code_size_in_bytes
    peak = held["argument"] + held["output"] - held["alias"] + held["temp"] + held["code"]
    found = collectives(program.as_text(), -(-config.data.reply_tokens // config.ppo.decode_block))
    received: dict[str, int] = {}
    exchanges = [each._asdict() | {"received": round(each.received)} for each in found]
    for each in found:
        received[each.operation] = received.get(each.operation, 0) + round(each.received)
    room = CHIP_BYTES[topology.partition(":")[0]]
    return {
        "part": part, "topology": topology, "mesh": sizes, "parameters": parameters, "items": items,
        "contexts": config.ppo.contexts, "group": config.ppo.group,
        "updates": config.ppo.epochs * config.ppo.minibatches,
        "lengths": [config.data.context_tokens, config.data.reply_tokens], "dtype": config.model.dtype,
        "bytes": held, "peak_bytes": peak, "chip_bytes": room, "fits": peak < room, "compile_seconds": seconds,
        "received_bytes": received, "collectives": exchanges,
        "versions": {"jax": jax.__version__}, "commit": source_tree.commit() or "unknown",
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status: 2 for flags that cannot be used."""
    own = dict(FLAGS)
    rest = []
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if sign and name in own:
            own[name] = value
        else:
            rest.append(argument)
    try:
        if not own["items"].isdigit() or own["items"] == "0":
            raise InputError(f"--items={own['items']}: give how many items the catalogue has")
        if not own["chips"].isdigit():
            raise InputError(f"--chips={own['chips']}: give a number, or 0 for all of the slice")
        if own["part"] not in ("iteration", "update"):
            raise InputError(f"--part={own['part']}: there are iteration and update")
        config = command_line.parse(["ahead", *rest], flags.FlagValues()).config
        found = described(config, own["topology"], int(own["items"]), int(own["chips"]), own["part"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found["command"] = " ".join(["python -m crs_jax.benchmark.ahead", *arguments])
    if own["out"]:
        write_json(pathlib.Path(own["out"]), found)
    print(json.dumps(found))
    return 0
