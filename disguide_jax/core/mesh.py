"""The devices that share one run: batches and the replay are split over them, nothing else.

Every device holds all networks and its part of the replay. A batch is split where it enters a
network, which `over_batch` says and XLA then carries on: a mean over the batch is the mean over
all devices, so that a round computes what it computes on one device, but for the order of its
sums. Without a mesh in use, which is how one device runs, nothing here does anything.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from disguide_jax.core import machines

if TYPE_CHECKING:  # it imports the replay, which imports this
    from disguide_jax.core.types import TrainState

BATCH = "batch"  # the axis of devices that a batch, and the replay, are split over


def use(devices: Sequence[jax.Device]) -> contextlib.AbstractContextManager[Any]:
    """What is traced and run in this block is so on these devices, in this thread."""
    if len(devices) == 1:
        return jax.default_device(devices[0])
    return jax.set_mesh(jax.make_mesh((len(devices),), (BATCH,), (AxisType.Auto,), devices=devices))


def use_one(array: jax.Array) -> contextlib.AbstractContextManager[Any]:
    """What is run in this block is so on the one device that holds this part of an array."""
    if jax.sharding.get_mesh().empty:
        return contextlib.nullcontext()
    (device,) = array.devices()
    return jax.set_mesh(jax.make_mesh((1,), (BATCH,), (AxisType.Auto,), devices=[device]))


def over_batch(x: jax.Array) -> jax.Array:
    """The same array, split along its first axis over the devices in use, if it can be evenly."""
    num = num_parts()
    if num == 1 or x.shape[0] % num:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH))


def num_parts() -> int:
    """Into how many parts a batch is split where this is called."""
    return jax.sharding.get_abstract_mesh().shape.get(BATCH, 1)


def by_each(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function of arrays and numbers, each device computing all of it by itself.

    What is small and loops is faster so than in parts, for which devices would wait in the loop.
    """
    if num_parts() == 1:
        return function

    def whole(*given: jax.Array | int) -> jax.Array:
        arrays = [x for x in given if isinstance(x, jax.Array)]
        others = given[len(arrays) :]
        each = jax.shard_map(
            lambda *arrays: function(*arrays, *others),
            in_specs=P(),
            out_specs=P(),
            check_vma=False,  # it is not told that all compute the same
        )
        return each(*arrays)

    return whole


def settled(state: "TrainState") -> "TrainState":
    """The state with every leaf where it belongs, in a traced function.

    What XLA would choose by itself may differ from what the function was given, and a buffer of
    another layout is not written in place.
    """
    if num_parts() == 1:
        return state
    return jax.tree.map(jax.lax.with_sharding_constraint, state, _specs(state))


def like(state: "TrainState") -> "TrainState":
    """The shapes of a state, and where its leaves belong."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return state

    def placed(x: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, state, _specs(state))


def on_all[Tree](tree: Tree) -> Tree:
    """The same arrays, on every device in use."""
    mesh = jax.sharding.get_mesh()
    everywhere = NamedSharding(mesh, P())
    return tree if mesh.empty else jax.tree.map(lambda x: machines.place(x, everywhere), tree)


def whole[Tree](tree: Tree) -> Tree:
    """The same arrays, in a traced function, so that every process can read them."""
    if num_parts() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)


def _specs(state: "TrainState") -> "TrainState":
    """Where each leaf of a state belongs: the replay in parts, all else on every device."""
    specs = jax.tree.map(lambda _: P(), state)
    if len(state.replay.images) % num_parts():  # a method that replays nothing keeps one image
        return specs
    return specs.replace(replay=specs.replay.replace(images=P(BATCH), answers=P(BATCH)))
