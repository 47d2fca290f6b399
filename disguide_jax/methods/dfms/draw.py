"""The images of DFMS, all made from keys and numbers, and the round's place in its stage."""

import jax
import jax.numpy as jnp

from disguide_jax.core import images as core_images
from disguide_jax.core import pixels, streams
from disguide_jax.core.exchange import Kit
from disguide_jax.core.types import Array, TrainState, Variables

LATENT, AUGMENT, REAL = range(3)  # streams of randomness


def index_of(state: TrainState) -> Array:
    """The number of the round within its stage, []."""
    return state.round - state.extra.start


def batch_of(state: TrainState, batch_size: int) -> Array:
    """The numbers of the images of this round's batch, [N]."""
    return index_of(state) * batch_size + jnp.arange(batch_size)


def round_latent(kit: Kit, state: TrainState) -> Array:
    """This round's latent batch, [N, Z]."""
    shape = kit.config.batch_size, kit.config.generator.latent_dim
    return jax.random.normal(streams.of_round(state, LATENT), shape)


def prior_images(
    kit: Kit, state: TrainState, prior: Variables, stream: int, indices: Array
) -> Array:
    """The prior's images of these numbers, always the same, as they are sent."""
    key, latent_dim = streams.of_run(state, stream), kit.config.generator.latent_dim
    z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (latent_dim,)))(indices)
    pre_tanh, _ = kit.networks.generator.apply(prior, z, train=False)
    return pixels.as_sent(jnp.tanh(pre_tanh), kit.query_dtype)


def proxy_images(kit: Kit, state: TrainState, indices: Array) -> Array:
    """The proxy images of these numbers, [N, H, W, channels] in [-1, 1]."""
    gray = state.extra.proxy[indices][..., None]
    return pixels.decode(jnp.broadcast_to(gray, (*gray.shape[:-1], kit.task.channels)))


def real_images(kit: Kit, state: TrainState) -> Array:
    """A batch of proxy images, shifted and mirrored."""
    indices = shuffled(kit, state, kit.config.dfms.proxy_images, 0)
    return augment(kit, state, REAL, proxy_images(kit, state, indices))


def augment(kit: Kit, state: TrainState, stream: int, images: Array) -> Array:
    """Images as the published training varies them."""
    key, flip = streams.of_round(state, stream), kit.config.dfms.flip
    return core_images.augment(key, images, padding=4, flip=flip, black=pixels.BLACK)


def shuffled(kit: Kit, state: TrainState, num: int, stream: int) -> Array:
    """The numbers [N] of a batch, below `num`: every one comes once in an epoch."""
    batch, index = kit.config.batch_size, index_of(state)
    batches = num // batch
    key = jax.random.fold_in(streams.of_run(state, streams.SHUFFLE), stream)
    key = jax.random.fold_in(key, state.extra.start + index // batches)
    order = jax.random.permutation(key, num)
    return jax.lax.dynamic_slice(order, (index % batches * batch,), (batch,))
