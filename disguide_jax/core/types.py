"""The words that every other module shares.

Shapes, here and everywhere: N batch, C clones, K classes, Z latent, R replay capacity;
images are [N, H, W, channels] in [-1, 1], and the clone axis comes first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from flax import struct

from disguide_jax.core.replay import Replay

Array = jax.Array
Key = jax.Array  # a typed PRNG key, from jax.random.key
Metrics = dict[str, Array]
Rate = optax.Schedule  # rounds of a stage that are done -> learning rate of the next one
Ask = Callable[[Array], Array]  # images [N, H, W, channels] -> answers, see `core.answers`


class Task(NamedTuple):
    """What is classified: the images and classes that victim and clones share."""

    size: int  # height and width in pixels
    channels: int
    num_classes: int
    mean: tuple[float, ...]  # of pixels in [0, 1], per channel, as the victim normalises them
    std: tuple[float, ...]


class Variables(NamedTuple):
    """What one network has learnt, or C networks stacked on axis 0."""

    params: Any
    batch_stats: Any  # running mean and (unbiased) variance; {} where there are none


class Apply(Protocol):
    """A network's forward pass: its output and, in train mode, new statistics."""

    def __call__(self, variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        """Returns (out, batch_stats)."""


class Net(NamedTuple):
    """A network as two pure functions; the only view that rounds have of Flax."""

    init: Callable[[Key], Variables]
    apply: Apply


class Networks(NamedTuple):
    """The networks that an extraction trains."""

    generator: Net  # [N, Z] -> images before their tanh
    clones: Net  # images [N, H, W, channels] -> logits [C, N, K]
    exact_clones: Net  # the same, computing in the weights' float32 (or float64)
    discriminator: Net | None = None  # of dfms: images -> logits [N]


class Learner(NamedTuple):
    """Whatever learns: a generator, stacked clones, a discriminator, a victim in training."""

    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """What the network's `apply` takes."""
        return Variables(self.params, self.batch_stats)


class Optimizers(NamedTuple):
    """One transformation per set of parameters, with the learning rates of a stage."""

    generator: optax.GradientTransformation
    clones: optax.GradientTransformation
    discriminator: optax.GradientTransformation | None = None
    generator_rate: Rate | None = None  # of the schedules, where there are any
    clones_rate: Rate | None = None


class Stage(NamedTuple):
    """A part of a run in which every round does the same; most methods have just one."""

    name: str
    num_rounds: int
    queries: int  # images sent to the victim in a round
    generator_updates: int = 0  # optimiser steps in a round
    clone_updates: int = 0


class Average(NamedTuple):
    """The exponential average of the clones' variables."""

    clones: Variables
    rounds: Array  # [] int32, that it has followed them for


class TrainState(struct.PyTreeNode):
    """Everything a round reads and writes; nothing else survives a restart."""

    round: Array  # [] int32, rounds done
    queries: Array  # [] int32, images the victim has answered
    answered: Array  # [K] int32, how often with each class
    key: Key  # root key; per-round keys are folded in, never split off
    generator: Learner
    clones: Learner  # leaves [C, ...]
    replay: Replay  # of one image, and always empty, where a method replays nothing
    average: Average | tuple[()] = ()  # of the clones, where one is kept
    extra: Any = ()  # what only one method keeps
