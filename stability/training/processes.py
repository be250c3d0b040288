"""Arrays that several processes hold together: made of what each has, sent by process 0, gathered by it.

Every function here that is not a question is called by all processes at the same place of the program; what passes
between them passes through their devices. Decisions pass elsewhere (`stability.launching.orders`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from stability.training.mesh import copied

Index = tuple[slice, ...]
"""Which part of an array, a slice for each dimension."""


def is_spread(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of several processes."""
    return mesh is not None and len({device.process_index for device in mesh.devices.flat}) > 1


def from_each(shape: tuple[int, ...], sharding: NamedSharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array made of what each process has for its own devices.

    Args:
        shape: of the whole.
        sharding: where which part of it lies.
        read: a part, as slices of the whole; asked for the parts of this process only.
    """

    def part(index: Index | None) -> np.ndarray:
        assert index is not None, "a device without a part of the array has none to be asked for"
        return read(index)

    return jax.make_array_from_callback(shape, sharding, part)


def same_in_each(tree: Any, sharding: Any) -> Any:
    """Arrays that every process has whole, on the devices of a sharding (or of a tree of them)."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def placed(leaf: Any, its_sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return from_each(whole.shape, its_sharding, lambda index: whole[index])

    return jax.tree.map(placed, tree, sharding)


def as_process_0_has(tree: Any, sharding: Any) -> Any:
    """Host arrays of process 0, on the devices of a tree of shardings; what the others have gives shapes and types.

    Leaf by leaf, so that no device holds more than one of them whole.
    """

    def sent(leaf: Any, its_sharding: NamedSharding) -> jax.Array:
        whole = multihost_utils.broadcast_one_to_all(np.asarray(leaf))
        return same_in_each(whole, its_sharding)  # type: ignore[no-any-return]

    return jax.tree.map(sent, tree, sharding)


def at_process_0(tree: Any) -> Any:
    """Spread arrays as host arrays in process 0; elsewhere zeros of their shapes, which take no memory.

    Leaf by leaf, so that no device holds more than one of them whole.
    """

    def gathered(leaf: jax.Array) -> np.ndarray:
        assert isinstance(leaf.sharding, NamedSharding), "programs on a mesh give arrays on it"
        assert isinstance(leaf.sharding.mesh, Mesh), "an array has real devices"
        whole = jax.jit(_same, out_shardings=copied(leaf.sharding.mesh))(leaf)
        if jax.process_index() == 0:
            return np.asarray(whole)
        jax.block_until_ready(whole)  # type: ignore[no-untyped-call]
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    return jax.tree.map(gathered, tree)


def copy(tree: Any) -> Any:
    """The same arrays in memory of their own, where they are."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
    return jax.jit(lambda arrays: jax.tree.map(jnp.copy, arrays), out_shardings=shardings)(tree)


def told_to_all(tree: Any, mesh: Mesh) -> Any:
    """Results of all lanes, [L, ...] each, as every device of the mesh has them; for use inside a program.

    All of them travel as one array: each message between processes costs as much as a small step.
    """
    leaves, structure = jax.tree.flatten(tree)
    rows = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in leaves]
    constrain: Any = jax.lax.with_sharding_constraint
    together = constrain(jnp.concatenate(rows, axis=1), copied(mesh))
    ends = np.cumsum([row.shape[1] for row in rows])[:-1].tolist()
    parts = jnp.split(together, ends, axis=1)
    told = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, told)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf
