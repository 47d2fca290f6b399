"""Images from latent vectors, gray ones among them, and how replayed ones are varied."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array, Key, Net, Variables


def draw_latent(key: Key, batch_size: int, latent_dim: int, channels: int) -> tuple[Array, Array]:
    """A latent batch [N, Z] from N(0, I), and the one channel that its gray images keep.

    Raises:
      AssertionError: it is not one key.
    """
    chex.assert_rank(key, 0)
    latent_key, gray_key = jax.random.split(key)
    z = jax.random.normal(latent_key, (batch_size, latent_dim))
    return z, jax.random.randint(gray_key, (), 0, channels)


def generate(
    generator: Net,
    variables: Variables,
    z: Array,
    gray_channel: Array,
    *,
    gray_every: int,
    train: bool,
) -> tuple[Array, Any]:
    """Images [N, H, W, channels] in [-1, 1] from latent vectors [N, Z], and new statistics.

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank([z, gray_channel], [2, 0])
    pre_tanh, batch_stats = generator.apply(variables, z, train=train)
    return to_gray(jnp.tanh(pre_tanh), gray_channel, every=gray_every), batch_stats


def to_gray(images: Array, channel: Array, *, every: int) -> Array:
    """Gives images 0, `every`, 2 `every`, ... one channel in place of all.

    The copies are detached: gradient flows through the kept channel only.

    Args:
      images: [N, H, W, channels].
      channel: [] integer, the channel to keep.
      every: 8 turns an eighth of the batch gray, 0 none.

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank([images, channel], [4, 0])
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

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank([key, images], [0, 4])
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
