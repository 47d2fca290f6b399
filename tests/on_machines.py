"""What test_machines.py runs in each process of a run, of which Slurm seems to have started two."""

import pathlib
import sys

import jax
import numpy as np
import on_devices
import tiny

from disguide_jax.core import machines, mesh
from disguide_jax.core.exchange import make_call
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.run import processes
from disguide_jax.run import program as parts

CONFIG = on_devices.config_of("disguide")


def numbers(state):
    """The leaves of a state as NumPy has them, wherever their parts are."""
    with mesh.use(jax.devices()):
        state = machines.done(state).replace(key=jax.random.key_data(state.key))
        leaves = machines.done(jax.jit(mesh.whole)(state))
    return [np.asarray(x, float) for x in jax.tree.leaves(leaves)]


def keep(path, state):
    """Writes the leaves of a state, in one process."""
    found = numbers(state)
    if machines.is_first():
        np.savez(path, *found)


def difference(path, state):
    """The largest one between a state and what was kept."""
    pairs = zip(np.load(path).values(), numbers(state), strict=True)
    return max(np.abs(x - y).max(initial=0) for x, y in pairs)


def go_on(folder):
    """Says how a restored state differs from the one kept; plays, saves and keeps another."""
    kit = tiny.make_kits(CONFIG)["extraction"]
    play = make_call(tiny.make_step(kit), looped=True)
    with mesh.use(jax.devices()), Checkpoints(folder / "checkpoints") as saved:
        template = mesh.like(jax.eval_shape(lambda: parts.init_state(kit, jax.random.key(0))))
        restored = saved.restore(template)
        if restored is None:
            state = jax.jit(lambda: parts.init_state(kit, jax.random.key(0)))()
        else:
            state, _ = restored
            print(difference(folder / "saved.npz", state))
        for num_rounds in (3, 2, 4):  # the ring holds 4 batches
            called = play(state, jax.tree_util.Partial(tiny.brightness), num_rounds)
            state, *_ = machines.done(called)
            saved.save(state, {})
        saved.wait()
    keep(folder / "saved.npz", state)


def main(folder):
    """Plays as test_mesh.py does, and compares with what was played before."""
    state = on_devices.play(CONFIG, jax.device_count())
    if (folder / "played.npz").exists():
        print(difference(folder / "played.npz", state))
    else:
        keep(folder / "played.npz", state)
    jax.config.update("jax_enable_x64", False)
    go_on(folder)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    with processes.joined(None):
        main(pathlib.Path(sys.argv[1]))
