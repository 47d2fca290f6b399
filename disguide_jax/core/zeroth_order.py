"""Gradients through a victim that gives none: forward differences along random directions.

What DFME (Truong et al., CVPR 2021) and MAZE (Kariyappa et al., CVPR 2021) share. The steps are
taken before the tanh, so that what the victim is sent stays within [-1, 1]. Shapes: N batch, m
directions, d = H * W * channels.

A step changes a pixel by some 1e-5, so two things must be true that nothing else here needs:
victim and clones compute in real float32, and images reach the victim unrounded.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from disguide_jax.config import Config
from disguide_jax.core import learn, pixels, streams
from disguide_jax.core.answers import CloneLoss
from disguide_jax.core.exchange import Exchange, Kit, Learn
from disguide_jax.core.types import Array, Key, Learner, Metrics, Net, TrainState, Variables
from disguide_jax.errors import UserError


class Proposal(NamedTuple):
    """Images and steps from them, before the victim has been asked about them."""

    passes: Array  # [1 + m, N, H, W, channels]: the images themselves, then a step along each u
    directions: Array  # u, [m, N, H, W, channels]
    # Gradient before the tanh -> (gradient of the generator's parameters,).
    pull_back: Callable[[Array], tuple[Any]]
    batch_stats: Any  # the generator's, after these images


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
    if config.victim.endpoint:
        check_visible(config)
    else:
        check_exact(config)
    if config.generator.gray_every:
        raise UserError(
            f"config.generator.gray_every is {config.generator.gray_every}; {config.method} "
            "turns no images gray: set it to 0"
        )


def check_visible(config: Config) -> None:
    """Raises UserError for steps that the 8 bits of an endpoint's images would round away."""
    size, channels = config.victim.image_size or 32, config.victim.channels or 3
    least = math.sqrt(size**2 * channels) / pixels.HALF_RANGE  # one level in each pixel
    if config.zeroth_order.epsilon < least:
        raise UserError(
            f"config.zeroth_order.epsilon is {config.zeroth_order.epsilon:g}; for an endpoint, "
            f"which takes images of 8 bits, {config.method} needs at least {least:.2f}: a shorter "
            "step changes hardly any pixel"
        )


def check_exact(config: Config) -> None:
    """Raises UserError for images in which a step along a direction would be lost."""
    for key, value in (("query_dtype", config.query_dtype), ("replay.dtype", config.replay.dtype)):
        if value not in ("auto", "float32"):
            raise UserError(
                f"config.{key} is {value!r}; {config.method} needs 'float32', because it moves "
                "pixels by about 2e-5, and images of 8 bits (steps of 8e-3) or bfloat16 (up to "
                "4e-3) would round that away"
            )


def draw_directions(key: Key, num: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """`num` directions for each of the images shaped [N, H, W, channels], of length 1.

    Returns:
      Uniform on the sphere, [num, N, H, W, channels].

    Raises:
      AssertionError: it is not one key.
    """
    chex.assert_rank(key, 0)
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

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(directions, 5)
    chex.assert_shape(losses, (1 + directions.shape[0], directions.shape[1]))
    size = directions[0, 0].size
    slopes = (losses[1:] - losses[:1]) / epsilon
    return size * (slopes[:, :, None, None, None] * directions).mean(axis=0)


def propose(kit: Kit, state: TrainState, latent: int, directions: int) -> Proposal:
    """A batch from the generator in train mode, and `m` steps from each image of it.

    Args:
      kit: of the run.
      state: of the round.
      latent: stream of the latent vectors.
      directions: stream of the directions.
    """
    config = kit.config
    shape = config.batch_size, config.generator.latent_dim
    z = jax.random.normal(streams.of_round(state, latent), shape)
    pre_tanh, pull_back, batch_stats = jax.vjp(
        lambda params: kit.networks.generator.apply(
            Variables(params, state.generator.batch_stats), z, train=True
        ),
        state.generator.params,
        has_aux=True,
    )
    u = draw_directions(
        streams.of_round(state, directions),
        config.zeroth_order.directions,
        pre_tanh.shape,
        pre_tanh.dtype,
    )
    passes = steps_along(pre_tanh, u, epsilon=config.zeroth_order.epsilon)
    return Proposal(passes, u, pull_back, batch_stats)


def steps_along(pre_tanh: Array, directions: Array, *, epsilon: float) -> Array:
    """Images, and those a step along each direction away, [1 + m, N, H, W, channels].

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(pre_tanh, 4)
    chex.assert_shape(directions, (None, *pre_tanh.shape))
    steps = jnp.concatenate([jnp.zeros_like(directions[:1]), directions])
    return jnp.tanh(pre_tanh[None] + epsilon * steps)


def estimate(
    clones: Learner,
    net: Net,
    passes: Array,
    directions: Array,
    answers: Array,
    *,
    loss_fn: CloneLoss,
    epsilon: float,
    clones_train: bool,
) -> tuple[Learner, Estimate]:
    """The gradient of a loss of victim and clones with respect to images before their tanh.

    Args:
      clones: whose statistics follow if they run in train mode.
      net: the clones', computing in the weights' own precision.
      passes: [1 + m, N, H, W, channels], from `steps_along`.
      directions: [m, N, H, W, channels], of length 1.
      answers: the victim's probabilities for the passes, [(1 + m) * N, K].
      loss_fn: logits [C, N, K], answers [N, K] -> losses [C, N].
      epsilon: length of a step.
      clones_train: their batch-norm mode; one pass for the images and one for each direction.

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(directions, 5)
    chex.assert_shape(passes, (1 + directions.shape[0], *directions.shape[1:]))
    chex.assert_shape(answers, (passes.shape[0] * passes.shape[1], None))
    answers = answers.reshape(*passes.shape[:2], -1)

    def evaluate(batch_stats: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
        images, answers = batch
        variables = Variables(clones.params, batch_stats)
        logits, batch_stats = net.apply(variables, images, train=clones_train)
        return batch_stats, loss_fn(logits, answers).mean(axis=0)

    # GPUs multiply float32 in fewer digits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        batch_stats, losses = jax.lax.scan(evaluate, clones.batch_stats, (passes, answers))
    gradient = forward_differences(losses, directions, epsilon=epsilon)
    clones = clones._replace(batch_stats=batch_stats)
    return clones, Estimate(gradient, losses[0], passes[0], answers[0])


# --- the exchanges that both methods have


def exchange(kit: Kit, latent: int, directions: int, learn_from: Learn) -> Exchange:
    """The exchange that buys an estimate; `learn_from` gets the `Proposal` as its carry."""
    config = kit.config

    def propose_flat(state: TrainState, index: Array) -> tuple[Array, Proposal]:
        del index
        proposal = propose(kit, state, latent, directions)
        return proposal.passes.reshape(-1, *proposal.passes.shape[2:]), proposal

    num_queries = config.batch_size * (1 + config.zeroth_order.directions)
    return Exchange(num_queries, propose_flat, learn_from)


def ask_clones(
    kit: Kit, clones: Learner, proposal: Proposal, answers: Array, *, train: bool
) -> tuple[Learner, Estimate]:
    """The estimate once the victim has answered; `train` is the clones' batch-norm mode."""
    return estimate(
        clones,
        kit.networks.exact_clones,
        proposal.passes,
        proposal.directions,
        answers,
        loss_fn=lambda logits, answers: -kit.answers.loss(logits, answers),
        epsilon=kit.config.zeroth_order.epsilon,
        clones_train=train,
    )


def fresh(
    kit: Kit, stream: int, learn_from: Learn, *, num_keys: int, first: int = 0, times: int
) -> Exchange:
    """`times` batches from the generator in train mode, with keys `first`, ... of `num_keys`."""
    config = kit.config

    def propose_fresh(state: TrainState, index: Array) -> tuple[Array, Any]:
        keys = jax.random.split(streams.of_round(state, stream), num_keys)
        shape = config.batch_size, config.generator.latent_dim
        z = jax.random.normal(keys[first + index], shape)
        pre_tanh, batch_stats = kit.networks.generator.apply(
            state.generator.variables, z, train=True
        )
        return jnp.tanh(pre_tanh), batch_stats

    return Exchange(config.batch_size, propose_fresh, learn_from, times)


def learn_fresh(
    kit: Kit, state: TrainState, batch_stats: Any, images: Array, answers: Array
) -> tuple[TrainState, Metrics]:
    """One update of the clones; the generator's statistics follow the images it has made."""
    clones, metrics = learn.teach(
        state.clones, kit.networks.clones, kit.tx.clones, kit.answers.loss, images, answers
    )
    generator = state.generator._replace(batch_stats=batch_stats)
    return state.replace(generator=generator, clones=clones), metrics
