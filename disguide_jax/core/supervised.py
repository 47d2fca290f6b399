"""The step of a victim's training on labelled images, and its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from disguide_jax.config import VictimTrainingConfig
from disguide_jax.core import learn, losses, pixels, replay, streams
from disguide_jax.core.images import augment
from disguide_jax.core.replay import Replay
from disguide_jax.core.types import Array, Key, Learner, Metrics, Net, Task, Variables


class Images(NamedTuple):
    """A data set's split on the device."""

    images: Array  # [M, H, W, channels] uint8
    labels: Array  # [M] int32


class VictimState(struct.PyTreeNode):
    """Everything a training step reads and writes."""

    round: Array  # [] int32, updates made
    key: Key  # root key; those of epochs and steps are folded in
    network: Learner
    order: Array  # [B, N] int32, the images of every batch of this epoch

    @property
    def queries(self) -> Array:
        """None: nobody is asked."""
        return jnp.zeros((), jnp.int32)

    @property
    def replay(self) -> Replay:
        """Nothing: checkpoints would save its entries apart."""
        nothing = jax.ShapeDtypeStruct((1,), jnp.uint8)
        return replay.init(1, nothing, nothing)


TrainStep = Callable[[VictimState, Images], tuple[VictimState, Metrics]]


def draw_order(key: Key, epoch: Array | int, num_images: int, batch_size: int) -> Array:
    """The images of every batch of an epoch, [B, N]: each image at most once.

    Shapes must be static, so the images that would make a smaller last batch are left out;
    they differ from epoch to epoch. Epochs count from 1.

    Raises:
      AssertionError: key or epoch is no scalar.
    """
    chex.assert_rank([key, epoch], 0)
    key = streams.of_step(key, epoch, streams.ORDER)
    num_batches = num_images // batch_size
    order = jax.random.permutation(key, num_images)
    return order[: num_batches * batch_size].reshape(num_batches, batch_size)


def make_optimizer(
    config: VictimTrainingConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """SGD with momentum; its learning rate falls at fractions of all updates."""
    boundaries = learn.boundaries(
        config.decay_at,
        factor=config.decay_factor,
        block_rounds=1,
        num_rounds=config.epochs * steps_per_epoch,
    )
    schedule = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    return learn.sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay)


def init_state(
    config: VictimTrainingConfig, net: Net, tx: optax.GradientTransformation, num_images: int
) -> VictimState:
    """A fresh state: an initialised network and its optimiser."""
    init_key, root = jax.random.split(jax.random.key(config.seed))
    return VictimState(
        round=jnp.zeros((), jnp.int32),
        key=root,
        network=learn.start(net.init(init_key), tx),
        order=draw_order(root, 1, num_images, config.batch_size),
    )


def make_train_step(
    config: VictimTrainingConfig,
    net: Net,
    tx: optax.GradientTransformation,
    task: Task,
    loss_fn: Callable[..., Array] = losses.hard_cross_entropy,
) -> TrainStep:
    """The pure function (state, train set) -> (state, metrics) of one update.

    `loss_fn` takes logits [N, K] and `labels` [N], and gives a loss for each image. The function
    raises AssertionError for a train set of other shapes than `Images` has.
    """
    mean, std = (jnp.asarray(x).reshape(1, 1, 1, -1) for x in (task.mean, task.std))

    def order_of_epoch(state: VictimState, num_images: int) -> Array:
        steps_per_epoch = len(state.order)

        def draw() -> Array:
            epoch = state.round // steps_per_epoch + 1
            return draw_order(state.key, epoch, num_images, config.batch_size)

        return jax.lax.cond(state.round % steps_per_epoch == 0, draw, lambda: state.order)

    def train_step(state: VictimState, train_set: Images) -> tuple[VictimState, Metrics]:
        chex.assert_rank([train_set.images, train_set.labels], [4, 1])
        chex.assert_equal_shape_prefix(list(train_set), 1)
        order = order_of_epoch(state, len(train_set.labels))
        rows = order[state.round % len(order)]
        key = streams.of_step(state.key, state.round, streams.AUGMENTATION)
        # Black comes in before the normalisation, as in the usual PyTorch recipe.
        images = augment(key, train_set.images[rows], padding=config.crop_padding, flip=config.flip)
        images = (images.astype(jnp.float32) / (2 * pixels.HALF_RANGE) - mean) / std
        labels = train_set.labels[rows]

        def mean_loss(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            variables = Variables(params, state.network.batch_stats)
            logits, batch_stats = net.apply(variables, images, train=True)
            loss = loss_fn(logits, labels=labels).mean()
            right = (jnp.argmax(logits, axis=-1) == labels).mean(dtype=jnp.float32)
            return loss, (batch_stats, {"train/accuracy": right})

        network, loss, metrics = learn.learn(state.network, tx, mean_loss)
        state = state.replace(round=state.round + 1, network=network, order=order)
        return state, metrics | {"train/loss": loss}

    return train_step
