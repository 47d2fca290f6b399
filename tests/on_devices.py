"""What test_mesh.py runs where JAX sees eight CPU devices: prints one number or message a line."""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.sharding import PartitionSpec as P

from disguide_jax.core import mesh
from disguide_jax.core.exchange import make_call
from disguide_jax.core.types import TrainState
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.run import program as parts

BATCH, ROUNDS = 16, 20
COUNTS = (2, 4, 8)


def start(kit):
    return parts.init_state(kit, jax.random.key(kit.config.seed))


def config_of(method):
    """Twenty rounds, and a replay that goes round several times."""
    soft = method in ("dfme", "maze")
    config = tiny.config(method=method, labels="soft" if soft else "hard", batch_size=BATCH)
    config.query_budget = BATCH * ROUNDS
    config.replay.size = 64
    config.generator.gray_every = 8 if method in ("disguide", "dual_students") else 0
    if method != "disguide":
        config.clones.steps = 2
        config.query_budget *= {"dual_students": 2, "dfms": 2, "dfme": 5, "maze": 4}[method]
    if soft:
        config.zeroth_order.directions = 2
    if method == "dfms":
        dfms = config.dfms
        dfms.proxy_images = dfms.validation_images = dfms.offline_images = 2 * BATCH
        dfms.gan_epochs = dfms.offline_epochs = dfms.diversity_epochs = 2
    return config


def as_float64(tree):
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, tree)


def play(config, num_devices) -> TrainState:
    """All rounds of all stages on so many devices, in float64."""
    stages = parts.stages_of(config)
    with mesh.use(jax.devices()[:num_devices]):
        kits = tiny.make_kits(config)
        kit = kits[stages[-1].name]
        state = jax.jit(lambda: mesh.settled(as_float64(start(kit))))()
        answer = tiny.smooth_brightness if config.labels == "soft" else tiny.brightness
        for stage in stages:
            call = make_call(parts.make_play(kits[stage.name], stage), looped=True)
            state, *_ = call(state, jax.tree_util.Partial(answer), stage.num_rounds)
    assert state.round >= ROUNDS
    assert len(state.replay.images.devices()) == num_devices
    if num_devices > 1:
        split = parts.method_of(config).keeps_replay
        assert state.replay.images.sharding.spec == (P(mesh.BATCH) if split else P())
        assert state.clones.params["fc"]["kernel"].sharding.is_fully_replicated
    return state


def numbers(state):
    """The leaves of a state as NumPy has them."""
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    return [np.asarray(x, float) for x in leaves]


def rounds(method):
    """The largest difference between the states on one device and on several."""
    config = config_of(method)
    one = numbers(play(config, 1))
    for num in COUNTS:
        several = numbers(play(config, num))
        print(max(np.abs(x - y).max(initial=0) for x, y in zip(one, several, strict=True)))


def checkpoints():
    """Whether a state that four devices saved, in three goes, is the same on any other number."""
    config = config_of("disguide")
    kit = tiny.make_kits(config)["extraction"]
    with tempfile.TemporaryDirectory() as folder:
        with mesh.use(jax.devices()[:4]), Checkpoints(pathlib.Path(folder)) as saved:
            state = jax.jit(lambda: start(kit))()
            made, _ = jax.jit(
                lambda s: kit.networks.generator.apply(
                    s.generator.variables, jnp.ones((BATCH, 4)), train=True
                )
            )(state)
            assert made.sharding.shard_shape(made.shape)[0] == BATCH // 4  # not all on each
            saved.restore(state)
            play = make_call(tiny.make_step(kit), looped=True)
            for num_rounds in (3, 2, 4):  # the ring holds 4 batches
                state, *_ = play(state, jax.tree_util.Partial(tiny.brightness), num_rounds)
                saved.save(state, {})
        for num in (1, 2, 8):
            with mesh.use(jax.devices()[:num]):
                template = mesh.like(jax.eval_shape(lambda: start(kit)))
                with Checkpoints(pathlib.Path(folder)) as saved:
                    found, _ = saved.restore(template)
                assert len(found.replay.images.devices()) == num
                assert len(found.clones.params["fc"]["kernel"].devices()) == num
            pairs = zip(numbers(found), numbers(state), strict=True)
            print(all(np.array_equal(x, y) for x, y in pairs))


if __name__ == "__main__":
    if sys.argv[1] == "checkpoints":
        checkpoints()
    else:
        jax.config.update("jax_enable_x64", True)
        rounds(sys.argv[1])
