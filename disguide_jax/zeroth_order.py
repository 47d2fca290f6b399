"""Gradients through a victim that gives none: forward differences along random directions.

What DFME (Truong et al., CVPR 2021) and MAZE (Kariyappa et al., CVPR 2021) share. The steps are
taken before the tanh, so that what the victim is sent stays within [-1, 1]. Shapes: N batch, m
directions, d = H * W * channels.

A step changes a pixel by some 1e-5, so two things must be true that nothing else here needs:
victim and clones compute in real float32, and images reach the victim unrounded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from disguide_jax import updates
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.state import Array, Key, Net, TrainState


class Estimate(NamedTuple):
    """What was bought with N * (1 + m) queries."""

    gradient: Array  # [N, H, W, channels], of each image's own loss, before the tanh
    losses: Array  # [N], averaged over the clones
    images: Array  # [N, H, W, channels], the images themselves, without a step
    answers: Array  # [N, K], to them


def check(config: Config) -> None:
    """Raises UserError for settings under which forward differences say nothing."""
    if config.labels == "hard":
        raise UserError(
            f"config.labels is 'hard'; {config.method} needs 'soft', because it estimates its "
            "generator's gradient from small changes of probabilities, and labels do not change"
        )
    if config.replay.dtype == "uint8":
        raise UserError(
            f"config.replay.dtype is 'uint8'; {config.method} needs 'float32', because it moves "
            "pixels by about 2e-5, and images of 8 bits (steps of 8e-3) would round that away"
        )
    if config.generator.gray_every:
        raise UserError(
            f"config.generator.gray_every is {config.generator.gray_every}; {config.method} "
            "turns no images gray: set it to 0"
        )


def draw_directions(key: Key, num: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """`num` directions for each of the images shaped [N, H, W, channels], of length 1.

    Returns:
      Uniform on the sphere, [num, N, H, W, channels].
    """
    directions = jax.random.normal(key, (num, *shape), dtype)
    squares = jnp.square(directions).sum(axis=(2, 3, 4), keepdims=True)
    return directions * jax.lax.rsqrt(squares)


def forward_differences(losses: Array, directions: Array, *, epsilon: float) -> Array:
    """`(1/m) sum_i d (l_i - l_0) / epsilon u_i`, each image's gradient.

    Args:
      losses: of the images themselves and after a step along each direction, [1 + m, N].
      directions: u, [m, N, H, W, channels].
      epsilon: length of the steps.

    Returns:
      [N, H, W, channels].
    """
    size = directions[0, 0].size
    slopes = (losses[1:] - losses[:1]) / epsilon
    return size * (slopes[:, :, None, None, None] * directions).mean(axis=0)


def estimate_gradient(
    state: TrainState,
    clones: Net,
    victim: Any,
    pre_tanh: Array,
    directions: Array,
    *,
    loss_fn: Callable[[Array, Array], Array],
    epsilon: float,
    clones_train: bool,
) -> tuple[TrainState, Estimate]:
    """Buys the gradient of a loss of victim and clones with respect to images.

    Args:
      state: of the round; the queries are counted in it and, if the clones run in train mode,
        their statistics follow.
      clones: computing in the weights' own precision.
      victim: that answers with probabilities.
      pre_tanh: the generator's output, [N, H, W, channels].
      directions: [m, N, H, W, channels], of length 1.
      loss_fn: logits [C, N, K], answers [N, K] -> losses [C, N].
      epsilon: length of a step.
      clones_train: their batch-norm mode; one pass for the images and one for each direction.
    """
    steps = jnp.concatenate([jnp.zeros_like(directions[:1]), directions])
    passes = jnp.tanh(pre_tanh[None] + epsilon * steps)  # [1 + m, N, ...]
    # GPUs multiply float32 in fewer digits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        flat = passes.reshape(-1, *pre_tanh.shape[1:])
        state, _, answers = updates.query(state, victim, flat, keep=False)
        answers = answers.reshape(*passes.shape[:2], -1)

        def evaluate(batch_stats: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
            images, answers = batch
            variables = state.clones._replace(batch_stats=batch_stats)
            logits, batch_stats = clones.apply(variables, images, train=clones_train)
            return batch_stats, loss_fn(logits, answers).mean(axis=0)

        batches = passes, answers
        batch_stats, losses = jax.lax.scan(evaluate, state.clones.batch_stats, batches)
    state = state.replace(clones=state.clones._replace(batch_stats=batch_stats))
    gradient = forward_differences(losses, directions, epsilon=epsilon)
    return state, Estimate(gradient, losses[0], passes[0], answers[0])
