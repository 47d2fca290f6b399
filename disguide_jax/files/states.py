"""The leaves of a state by name, as checkpoints keep them."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax.core.replay import Like
from disguide_jax.errors import UserError
from disguide_jax.files.manifest import Manifest


def flatten(state: Any) -> dict[str, Like]:
    """Leaves by path, such as clones.params.fc.kernel, in the order of jax.tree.leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def is_key(leaf: Like) -> bool:
    """Whether it holds keys of random numbers."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def num_bytes(leaf: Like) -> int:
    """What it takes, wherever it lies."""
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def describe(leaf: Like) -> str:
    """Its type and shape in one word."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def check_fits(directory: pathlib.Path, manifest: Manifest, template: Any) -> None:
    """Raises UserError where the state differs: no other checkpoint would fit either."""
    here = {path: describe(leaf) for path, leaf in flatten(template).items()}
    there = manifest.leaves
    differing = [path for path in here | there if here.get(path) != there.get(path)]
    if differing:
        lines = "".join(
            f"\n  {path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
            for path in differing[:3]
        )
        more = f"\n  and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{directory / manifest.name} is the checkpoint of another configuration:{lines}"
            f"{more}\nUse the configuration that it was made with, or another --workdir."
        )
