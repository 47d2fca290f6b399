"""The words that every other module shares.

Shapes, here and everywhere: N batch, C clones, K classes, Z latent, R replay capacity;
images are [N, H, W, channels] in [-1, 1], and the clone axis comes first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import struct

from disguide_jax.replay import Replay

Array = jax.Array
Key = jax.Array  # a typed PRNG key, from jax.random.key
Metrics = dict[str, Array]
Rate = Callable[[int], Any]  # rounds of a stage that are done -> learning rate of the next one


class Variables(NamedTuple):
    """What one network has learnt, or C networks stacked on axis 0."""

    params: Any
    batch_stats: Any  # running mean and (unbiased) variance; {} where there are none


class Net(NamedTuple):
    """A network as two pure functions; the only view the steps have of Flax."""

    init: Callable[[Key], Variables]
    apply: Callable[..., tuple[Array, Any]]  # (variables, x, *, train) -> (out, batch_stats)


class Networks(NamedTuple):
    """The networks that an extraction trains."""

    generator: Net  # [N, Z] -> images
    clones: Net  # images [N, H, W, channels] -> logits [C, N, K]
    exact_clones: Net | None = None  # the same, computing in the weights' float32 (or float64)
    discriminator: Net | None = None  # of dfms: images -> logits [N]


class Optimizers(NamedTuple):
    """One transformation per set of parameters, and what their learning rates are."""

    generator: optax.GradientTransformation
    clones: optax.GradientTransformation
    discriminator: optax.GradientTransformation | None = None
    generator_rate: Rate | None = None  # of the schedules, where there are any
    clones_rate: Rate | None = None


class Stage(NamedTuple):
    """A part of a run in which every round does the same; most methods have just one."""

    name: str
    num_rounds: int
    queries_per_round: int


@struct.dataclass
class TrainState:
    """Everything a step reads and writes; nothing else survives a restart."""

    round: Array  # [] int32, rounds done
    queries: Array  # [] int32, images the victim has answered
    answered: Array  # [K] int32, how often with each class
    key: Key  # root key; per-round keys are folded in, never split off
    generator: Variables
    clones: Variables  # leaves [C, ...]
    generator_opt: optax.OptState
    clones_opt: optax.OptState
    replay: Replay  # of one image, and always empty, where a method replays nothing
    extra: Any = ()  # what only one method keeps
