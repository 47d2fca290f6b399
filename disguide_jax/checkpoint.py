"""Checkpoints of the whole train state, by orbax."""

import contextlib
import pathlib

import jax
import orbax.checkpoint as ocp

from disguide_jax.state import TrainState


class Checkpoints:
    def __init__(self, directory):
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )

    def save(self, state, progress):
        self._manager.save(
            int(state.round),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )

    def restore(self, template):
        step = self._manager.latest_step()
        if step is None:
            return None
        out = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()
            ),
        )
        return out.state, out.progress

    def wait(self):
        self._manager.wait_until_finished()

    def close(self):
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def lock(workdir):
    yield


def bytes_on_disk(template):
    return 0
