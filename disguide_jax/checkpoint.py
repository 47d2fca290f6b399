"""Checkpoints of the whole train state, by orbax, and the lock on a workdir.

The only module that knows orbax's names.
"""

import contextlib
import fcntl
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from disguide_jax.errors import UserError
from disguide_jax.state import TrainState

NUM_KEPT = 2


class Checkpoints:
    """The newest two checkpoints of a run, named by their round. A context manager.

    Args:
      directory: made if absent.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        # Synchronous: the next step donates the very buffers that would still be written.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=NUM_KEPT, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        except OSError as error:
            raise UserError(f"{directory} cannot be used: {error.strerror}") from error

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves the state, and a small dict for JSON beside it.

        Raises:
          UserError: the directory cannot be written; what was there stays.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        try:
            self._manager.save(int(state.round), args=args, force=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._directory}: the checkpoint of round {int(state.round)} cannot be "
                f"written: {error}. The one before stays usable."
            ) from error

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint; None if there never was one.

        Args:
          template: arrays or shapes of the state.

        Raises:
          UserError: there is one, but it cannot be read. The run must not start over and
            spend the budget twice.
        """
        newest = self._manager.latest_step()
        if newest is None:
            return None
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_on_device(template)),
            progress=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(newest, args=args)
        except Exception as error:  # damage makes the readers stumble in every possible way
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UserError(
                f"{self._directory / str(newest)} cannot be restored: {reason[0]}\n"
                "The run stops rather than starting over and spending the budget twice. Bring "
                "the directory back from a copy, delete it to continue from the checkpoint "
                "before, or choose another --workdir."
            ) from error
        return found.state, found.progress

    def close(self) -> None:
        """Lets go of the directory."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bytes_on_disk(template: TrainState) -> int:
    """What checkpoints need at most: those kept, and the one being written."""
    leaves = [
        x
        for x in jax.tree.leaves(template)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    return (NUM_KEPT + 1) * sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of a workdir. It ends with the process, however that ends.

    Raises:
      UserError: another process holds it.
    """
    path = workdir / ".lock"
    try:
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{workdir} is in use by another process (pid {holder}); "
                "wait for it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _on_device(template: TrainState) -> TrainState:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
    )
