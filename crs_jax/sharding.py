"""The mesh and the one table of rules that says how each parameter is laid over it.

Axes: `data` (batches), `fsdp` (batches, and parameters cut along their width), `tensor` (heads, MLP columns, vocabulary
rows). A dimension that an axis does not divide stays whole.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from crs_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Pattern of the parameter's path -> axes of its dimensions. Stacked layers have a leading L.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/qkv_kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/qkv_bias", PartitionSpec(None, None, "tensor", None)),
    (r"blocks/out_kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"blocks/up_kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/up_bias", PartitionSpec(None, "tensor")),
    (r"blocks/down_kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"(words|items/residual)$", PartitionSpec("tensor", "fsdp")),
    (r"items/content$", PartitionSpec("tensor", None)),
    (r"items/bias$", PartitionSpec("tensor")),
    (r"(items/projection|query/\w+_kernel)$", PartitionSpec(None, "fsdp")),
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


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
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


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts host arrays onto the mesh, cut along their first axis; every process holds the whole batch."""

    def put(array):
        array = np.asarray(array)
        sharding = NamedSharding(mesh, BATCH if array.ndim else PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, batch)
