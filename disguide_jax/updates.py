"""What rounds are made of: generate, update the generator, query the victim, update the clones.

Every function is pure and takes its randomness as arguments. Which batch-norm mode a network
runs in is written at each call, because it is part of the algorithm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from disguide_jax import losses, replay
from disguide_jax.config import ClonesConfig
from disguide_jax.state import Array, Key, Metrics, Net, TrainState, Variables
from disguide_jax.victim import to_labels

CloneLoss = Callable[[Array, Array], Array]  # logits [C, N, K], answers -> [C, N]


def round_key(state: TrainState, stream: int) -> Key:
    """The key of one stream in this round; a restart finds it from (key, round) alone."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.round), stream)


def draw_latent(key: Key, batch_size: int, latent_dim: int, channels: int) -> tuple[Array, Array]:
    """A latent batch [N, Z] from N(0, I), and the one channel that its gray images keep."""
    latent_key, gray_key = jax.random.split(key)
    z = jax.random.normal(latent_key, (batch_size, latent_dim))
    return z, jax.random.randint(gray_key, (), 0, channels)


def to_gray(images: Array, channel: Array, *, every: int) -> Array:
    """Gives images 0, `every`, 2 `every`, ... one channel in place of all.

    The copies are detached: gradient flows through the kept channel only.

    Args:
      images: [N, H, W, channels].
      channel: [] integer, the channel to keep.
      every: 8 turns an eighth of the batch gray, 0 none.
    """
    if every == 0 or images.shape[-1] == 1:
        return images
    kept = jax.lax.stop_gradient(jnp.take(images, channel, axis=-1))[..., None]
    is_kept = (jnp.arange(images.shape[-1]) == channel)[None, None, None, :]
    is_gray = (jnp.arange(images.shape[0]) % every == 0)[:, None, None, None]
    return jnp.where(is_gray & ~is_kept, kept, images)


def augment(key: Key, images: Array, *, padding: int, flip: bool, black: float = 0) -> Array:
    """Shifts every image at random and mirrors half of them.

    Args:
      key: of this batch.
      images: [N, H, W, channels], of any type.
      padding: black pixels added on every side, of which a random window is kept.
      flip: whether to mirror.
      black: its value in `images`.

    Returns:
      Images of the same shape and type.
    """
    crop_key, flip_key = jax.random.split(key)
    size = images.shape[1:]
    if padding:
        edge = (padding, padding)
        padded = jnp.pad(images, [(0, 0), edge, edge, (0, 0)], constant_values=black)
        corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * padding + 1)
        images = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), size))(
            padded, corners
        )
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def generate(
    generator: Net,
    variables: Variables,
    z: Array,
    gray_channel: Array,
    *,
    gray_every: int,
    train: bool,
) -> tuple[Array, Any]:
    """Images [N, H, W, channels] in [-1, 1] from latent vectors [N, Z], and new statistics."""
    pre_tanh, batch_stats = generator.apply(variables, z, train=train)
    return to_gray(jnp.tanh(pre_tanh), gray_channel, every=gray_every), batch_stats


def update_generator(
    state: TrainState,
    tx: optax.GradientTransformation,
    loss_fn: Callable[[Any], tuple[Array, tuple[Any, Metrics]]],
) -> tuple[TrainState, Metrics]:
    """One optimiser step on the generator.

    Args:
      state: of the round.
      tx: the generator's optimiser.
      loss_fn: params -> (loss, (batch_stats, metrics)).
    """
    params = state.generator.params
    (loss, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    state = apply_generator_gradient(state, tx, grads, batch_stats)
    return state, metrics | {"gen/loss": loss}


def apply_generator_gradient(
    state: TrainState, tx: optax.GradientTransformation, grads: Any, batch_stats: Any
) -> TrainState:
    """One optimiser step on the generator with the gradient of its parameters."""
    params = state.generator.params
    updates, generator_opt = tx.update(grads, state.generator_opt, params)
    generator = Variables(optax.apply_updates(params, updates), batch_stats)
    return state.replace(generator=generator, generator_opt=generator_opt)


def as_sent(state: TrainState, images: Array) -> Array:
    """What reaches the victim: with a uint8 replay images of 8 bits, as through an image API."""
    if state.replay.images.dtype != jnp.uint8:
        return images
    return replay.decode(replay.encode(images, jnp.uint8)).astype(images.dtype)


def query(
    state: TrainState, victim: Callable[[Array], Array], images: Array, *, keep: bool = True
) -> tuple[TrainState, Array, Array]:
    """Sends a batch to the victim, counts it, and stores it for replay if it is to `keep`.

    The only place where a victim is asked during training, and so the only accountant.

    Returns:
      The state, the images as they were sent (rounded to 8 bits with a uint8 replay, as an
      image API would), and the victim's answers.
    """
    images = as_sent(state, images)
    answers = victim(images)
    counts = jnp.bincount(to_labels(answers), length=len(state.answered))
    state = state.replace(queries=state.queries + images.shape[0], answered=state.answered + counts)
    if keep:
        state = state.replace(replay=replay.insert(state.replay, images, answers))
    return state, images, answers


def update_clones(
    state: TrainState,
    clones: Net,
    tx: optax.GradientTransformation,
    loss_fn: CloneLoss,
    images: Array,
    answers: Array,
) -> tuple[TrainState, Metrics]:
    """One optimiser step on all clones, with the same batch; batch norm in train mode."""

    def summed_loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
        variables = state.clones._replace(params=params)
        logits, batch_stats = clones.apply(variables, images, train=True)
        per_clone = loss_fn(logits, answers).mean(axis=-1)
        # Parameters are disjoint: the gradient of the sum is each clone's own.
        return per_clone.sum(), (batch_stats, per_clone)

    params = state.clones.params
    grads, (batch_stats, per_clone) = jax.grad(summed_loss, has_aux=True)(params)
    updates, clones_opt = tx.update(grads, state.clones_opt, params)
    variables = Variables(optax.apply_updates(params, updates), batch_stats)
    state = state.replace(clones=variables, clones_opt=clones_opt)
    return state, {"clones/loss": per_clone.mean()}


def repeat(
    step: Callable[[Any, Key], tuple[Any, Metrics]], carry: Any, keys: Key
) -> tuple[Any, Metrics]:
    """Takes a step once with each key [num]; returns the metrics of the last, {} of none.

    One program on a GPU or TPU, however many steps; unrolled on the CPU, where a convolution's
    gradient in a loop is 30 times slower.
    """
    if len(keys) > 1 and jax.default_backend() != "cpu":
        carry, metrics = jax.lax.scan(step, carry, keys)
        return carry, {name: values[-1] for name, values in metrics.items()}
    metrics = {}
    for key in keys:
        carry, metrics = step(carry, key)
    return carry, metrics


def make_clone_loss(config: ClonesConfig, *, labels: str) -> CloneLoss:
    """The clones' loss: cross-entropy for hard labels, `config.soft_loss` for soft ones."""
    if labels == "hard":
        return lambda logits, answers: losses.hard_cross_entropy(logits, labels=answers)
    if config.soft_loss == "l1":
        return lambda logits, answers: losses.l1(
            logits, targets=losses.centred_log_probs(answers, floor=config.prob_floor)[None]
        )
    soft_loss = {"cross_entropy": losses.soft_cross_entropy, "kl": losses.kl_divergence}
    return lambda logits, answers: soft_loss[config.soft_loss](logits, probs=answers[None])
