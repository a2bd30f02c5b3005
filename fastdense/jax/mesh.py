"""Devices as a mesh with one axis, over which the rows of a batch are divided."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
ROWS = PartitionSpec(AXIS)
WHOLE = PartitionSpec()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, in the order of their numbers, or those given."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def local_part(mesh: Mesh) -> Mesh:
    """The devices of ``mesh`` that belong to this process, as a mesh of their own."""
    return make_mesh(list(mesh.local_devices))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device; every process gives equal ones."""
    whole = NamedSharding(mesh, WHOLE)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf)), tree)


def divide_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is divided over all devices; each process gives the rows of its own devices."""
    rows = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf), tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Replicated arrays as arrays of this process's devices alone, ``mesh``; nothing is copied."""
    whole = NamedSharding(mesh, WHOLE)

    def own(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, whole, parts)

    return jax.tree.map(own, tree)
