"""The processes that play one run together, on one machine or several, and what they agree on.

Each of them computes the same, every device its part. What only one of them knows, such as a
signal that it was sent, the others must be told, or they would wait for it for ever. So whoever
calls `gather` must be sure that all processes do, in the same order, and that what they computed
before is done. A single process does nothing here.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from disguide_jax.core import backend


def count() -> int:
    """How many processes play this run."""
    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that writes and says what only one should."""
    return index() == 0


def gather(*numbers: int) -> np.ndarray:
    """What every process gives, [processes, numbers] int32; all wait here for each other."""
    mesh = jax.sharding.Mesh(jax.devices(), "device")
    row = np.array([numbers], np.int32)
    of_devices = jax.make_array_from_callback(
        (mesh.size, len(numbers)), NamedSharding(mesh, PartitionSpec("device")), lambda _: row
    )
    whole = np.asarray(done(_replicate(of_devices, NamedSharding(mesh, PartitionSpec()))))
    owners = [device.process_index for device in jax.devices()]
    return whole[[owners.index(process) for process in range(count())]]


@functools.partial(jax.jit, static_argnums=1)
def _replicate(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(array, sharding)


def done[Tree](tree: Tree) -> Tree:
    """The same arrays, computed on all devices of this process where two calls would collide."""
    return jax.block_until_ready(tree) if backend.calls_collide() else tree


def meet() -> None:
    """Returns when every process has come here."""
    if count() > 1:
        gather(0)


def agreed(signals: Sequence[int]) -> Sequence[int]:
    """A signal that any of the processes was sent; the list itself where there is one process."""
    if count() == 1:
        return signals
    return [signal for (signal,) in gather(signals[0] if signals else 0).tolist() if signal][:1]


def differing(value: str) -> str:
    """The numbers of the processes whose value is not that of the first; empty if all agree."""
    if count() == 1:
        return ""
    digest = hashlib.sha256(value.encode()).digest()
    found = gather(*np.frombuffer(digest, np.int32).tolist())
    return ", ".join(map(str, np.flatnonzero((found != found[0]).any(axis=1))))


def place(value: jax.Array | np.ndarray, sharding: Sharding | None) -> jax.Array:
    """An array of which every process has all, where it belongs on the devices of all.

    What is given as NumPy's may stay NumPy's, and must not be donated.
    """
    is_global = isinstance(value, jax.Array) and not value.is_fully_addressable
    if is_global or not isinstance(sharding, NamedSharding) or sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
