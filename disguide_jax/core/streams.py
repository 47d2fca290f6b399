"""Every stream of randomness: fold_in(key, round), then the number of a stream.

Nothing is split off and carried along, so that a run which is continued needs only its root
key and its round. Each method numbers the streams of its rounds from 0, and what belongs to a
whole run counts down from the largest int32, where no round and no stream of one comes.
"""

import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array, Key, TrainState

# Of a whole run.
SAMPLES = 2**31 - 1  # the latent vectors behind samples/
SHUFFLE, PROXY, PRIOR, VALIDATION, DISCRIMINATOR = range(2**31 - 10, 2**31 - 5)  # of dfms
RESTART = 2**31 - 20  # fresh networks in a run that is stuck
FIDELITY = 2**31 - 21  # images that only measure fidelity


# Of an epoch and of a step of a victim's training.
ORDER, AUGMENTATION = range(2)


def of_step(key: Key, step: Array | int, stream: int) -> Key:
    """The key of one stream at a step, of the root key."""
    return jax.random.fold_in(jax.random.fold_in(key, step), stream)


def of_round(state: TrainState, stream: int) -> Key:
    """The key of one stream in this round."""
    return of_step(state.key, state.round, stream)


def of_run(state: TrainState, stream: int) -> Key:
    """The key of a stream that is the same in all rounds."""
    return jax.random.fold_in(state.key, stream)


def one_of(key: Key, num: int, index: Array | int) -> Key:
    """The key of one step of `num` that share a stream."""
    return jax.random.split(key, num)[jnp.asarray(index)] if num > 1 else key
