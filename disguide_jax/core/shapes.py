"""Random shapes on a plain ground: images that cost no training and are no class's own.

A generator that seeks disagreement ends with fine textures, while photographs of things are
smooth, with few edges. Shapes among the queries keep the clones right about such images.
"""

import chex
import jax
import jax.numpy as jnp

from disguide_jax.core import pixels
from disguide_jax.core.types import Array, Key

OUTLINES = (3, 4, 5, 6)  # cells along a side of the noise whose positive part is the shape
TEXTURES = (4, 6, 9)  # and of that which fills it


def draw(key: Key, num: int, size: int, channels: int) -> Array:
    """Shapes of smooth noise, filled with other smooth noise of any brightness, on black.

    Args:
      key: consumed.
      num: N, of images.
      size: height and width in pixels.
      channels: of the images; each has a filling of its own.

    Returns:
      Images [N, size, size, channels] in [-1, 1].

    Raises:
      AssertionError: it is not one key.
    """
    chex.assert_rank(key, 0)
    keys = jax.random.split(key, 4)
    outline = smooth_noise(keys[0], OUTLINES, (num, size, size, 1))
    area = 0.3 * jax.random.normal(keys[1], (num, 1, 1, 1))
    filling = smooth_noise(keys[2], TEXTURES, (num, size, size, channels))
    brightness = jax.random.normal(keys[3], (num, 1, 1, channels))
    return jnp.where(outline + area > 0, jnp.tanh(filling + brightness), pixels.BLACK)


def smooth_noise(key: Key, cells: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Normal noise on grids of so many cells a side, each image's drawn from `cells`.

    Args:
      key: consumed.
      cells: to draw from.
      shape: [N, H, W, channels] of the result, which interpolates the grids.

    Raises:
      AssertionError: it is not one key.
    """
    chex.assert_rank(key, 0)
    num, _, _, channels = shape
    choice_key, *keys = jax.random.split(key, 1 + len(cells))
    grids = [jax.random.normal(k, (num, n, n, channels)) for k, n in zip(keys, cells, strict=True)]
    resized = jnp.stack([jax.image.resize(grid, shape, "cubic") for grid in grids])
    choice = jax.random.randint(choice_key, (num,), 0, len(cells))
    return resized[choice, jnp.arange(num)]
