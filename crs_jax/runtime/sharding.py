"""The mesh and the one table of rules that says how each parameter is laid over it.

Axes: `data` (batches), `fsdp` (batches, and parameters cut along their width), `tensor` (heads, MLP columns, vocabulary
rows). A dimension that an axis does not divide stays whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from crs_jax.runtime.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Pattern of the parameter's path -> axes of its dimensions. Stacked layers have a leading L. A decoder that calls its
# parameters so has them cut so (`models/decoder.py`); others stay whole.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/qkv_kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/qkv_bias", PartitionSpec(None, None, "tensor", None)),
    (r"blocks/[qkv]_kernel", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"blocks/[qkv]_bias", PartitionSpec(None, "tensor", None)),
    (r"blocks/out_kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"blocks/(gate|up)_kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/up_bias", PartitionSpec(None, "tensor")),
    (r"blocks/down_kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"(words|output|items/residual)$", PartitionSpec("tensor", "fsdp")),
    (r"items/content$", PartitionSpec("tensor", None)),
    (r"items/bias$", PartitionSpec("tensor")),
    (r"(controls|items/projection|query/(text|asked|named)_kernel)$", PartitionSpec(None, "fsdp")),
    (r"query/(match|hidden)_kernel$", PartitionSpec("fsdp", None)),
    (r"trunk/positions$", PartitionSpec(None, "fsdp")),
)


def make_mesh(config: ConfigDict) -> Mesh:
    """Mesh of `config.mesh` over all devices; `data=-1` takes what the other axes leave."""
    devices = jax.device_count()
    fsdp, tensor, data = config.mesh.fsdp, config.mesh.tensor, config.mesh.data
    if data == -1:
        data = max(devices // (fsdp * tensor), 1)
    if data * fsdp * tensor != devices:
        raise InputError(
            f"config.mesh: data {data} x fsdp {fsdp} x tensor {tensor} = {data * fsdp * tensor}, but there are "
            f"{devices} devices; choose axes whose product is {devices}"
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def path_name(path: tuple) -> str:
    """`trunk/blocks/up_kernel` of a pytree path (without NNX's closing `value`)."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return "/".join(name for name in names if name != "value")


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The rule for one array, less what the mesh does not divide."""
    for pattern, spec in RULES:
        if re.search(pattern, name) and len(spec) == len(shape):
            axes = [
                axis if axis is not None and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(spec, shape, strict=True)
            ]
            return PartitionSpec(*axes)
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """`NamedSharding` of every array of a tree of parameters, optimizer moments or gradients."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), np.shape(leaf), mesh)), tree
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of parameters onto the mesh by the rules."""
    return jax.device_put(tree, shardings(tree, mesh))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device, so that every process can read it."""
    return NamedSharding(mesh, PartitionSpec())


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """The function, for `jax.jit`, traced with the mesh in sight of `by_batch`."""

    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def by_batch(x: jax.Array, last: str | None = None) -> jax.Array:
    """Activations in a jitted function: the first axis cut over data and fsdp, the last over `last`, the rest whole.

    Left to itself the compiler cuts matrix products along fsdp, where the parameters are cut: every chip would hold the
    whole batch, and logits would be summed over chips. With the activations held to the batch it gathers a layer's
    parameters where they are used, which is what fsdp means. Nothing happens without `on_mesh`, or where the axis does
    not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    middle = [None] * (x.ndim - 2)
    return lax.with_sharding_constraint(x, PartitionSpec(*BATCH, *middle, last) if x.ndim > 1 else BATCH)


def in_parts(batch: Any, parts: int, mesh: Mesh) -> Any:
    """Inside a jitted function: leading axis B cut into `[parts, B / parts]`, each part over data and fsdp."""

    def cut(a: jax.Array) -> jax.Array:
        a = a.reshape(parts, a.shape[0] // parts, *a.shape[1:])
        return lax.with_sharding_constraint(a, NamedSharding(mesh, PartitionSpec(None, *BATCH)))

    return jax.tree.map(cut, batch)


def after(tree: Any, done: jax.Array) -> Any:
    """The tree's arrays as they are, but not before `done` is computed; inside jit.

    Collectives of computations that do not depend on one another can be met in another order by each device, and those
    that one process simulates then wait for each other for ever.
    """
    ready = ~(done.max() == jnp.inf)  # true of all finite numbers, which no compiler can know
    return jax.tree.map(lambda a: jnp.where(ready, a, jnp.zeros_like(a)), tree)


def by_rows(table: jax.Array) -> jax.Array:
    """A vocabulary table where it is used: rows cut over tensor, the width, which fsdp cuts at rest, whole."""
    return _in_use(table, PartitionSpec("tensor", "fsdp"))


def whole(table: jax.Array) -> jax.Array:
    """A small table that rows are taken of, whole on each device; at rest fsdp cuts its width."""
    return _in_use(table, PartitionSpec(None, "fsdp"))


def _along_fsdp_whole(spec: PartitionSpec) -> PartitionSpec:
    """The layout in use of what lies so at rest."""
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))


def _in_use(table: jax.Array, rest: PartitionSpec) -> jax.Array:
    """The table whole along fsdp, and its gradient as it lies at `rest`: summed to where each device needs its part."""
    mesh, used = jax.sharding.get_abstract_mesh(), _along_fsdp_whole(rest)
    if mesh.empty or any(axis and size % mesh.shape[axis] for axis, size in zip(rest, table.shape, strict=True)):
        return table

    @jax.custom_vjp
    def lay(table: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(table, used)

    def back(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        if mesh.shape["fsdp"] == 1:  # at rest as in use; sums over devices may wait until all parts are added up
            return (gradient,)
        if mesh.size > mesh.shape["fsdp"]:  # else the compiler cuts what the gradient is made of, activations, by fsdp
            gradient = lax.with_sharding_constraint(gradient, used)
        return (lax.with_sharding_constraint(gradient, rest),)

    lay.defvjp(lambda table: (lay(table), None), back)
    return lay(table)


def gathered(module: nnx.Module, dtype: str) -> Any:
    """A policy for many small steps: trunk and projections, which each reads, whole along fsdp and in the activations'
    type.

    Left cut, the parameters would go over the wires again at every step of a decode loop. Takes their bytes in `dtype`,
    divided by the tensor axis, on each device while it is in use. Nothing happens without `on_mesh` or fsdp.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return module
    graphdef, state = nnx.split(module)

    def whole(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        spec = spec_of(name, leaf.shape, mesh)
        if "fsdp" not in spec or not re.search(r"trunk/|controls$|projection$|hidden_kernel$", name):
            return leaf
        leaf = leaf.astype(dtype) if re.search(r"kernel$|controls$|projection$", name) else leaf
        return lax.with_sharding_constraint(leaf, _along_fsdp_whole(spec))

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(whole, state))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts host arrays onto the mesh, cut along their first axis; every process holds the whole batch."""

    def put(array):
        array = np.asarray(array)
        sharding = NamedSharding(mesh, BATCH if array.ndim else PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, batch)
