"""Small operations on trees of arrays."""

import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array


def repeated[Tree](tree: Tree, num: int) -> Tree:
    """Every leaf `num` times, on a new axis 0."""
    return jax.tree.map(lambda x: jnp.repeat(x[None], num, axis=0), tree)


def select[Tree](condition: Array, tree: Tree, other: Tree) -> Tree:
    """One of two trees of the same shapes."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def write(buffer: Array, rows: Array, at: Array) -> Array:
    """Rows written from index `at` on; they fit."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, rows, at, axis=0)
