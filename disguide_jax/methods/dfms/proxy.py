"""Synthetic images of random shapes, the only images that DFMS starts from (Sanyal et al., 2022).

A pure function of the key: no data set is needed.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array

CANVAS = 100  # pixels of the canvas that is drawn on, in height and width
NUM_SHAPES = 50
TRIANGLE, RECTANGLE, CIRCLE, ELLIPSE = range(4)


def make_proxy(key: Key, num_images: int, size: int) -> Array:
    """`num_images` gray images, [num_images, size, size] uint8."""
    keys = jax.random.split(key, num_images)
    draw = functools.partial(draw_image, size=size)
    return jax.lax.map(draw, keys, batch_size=min(num_images, 64))


def draw_image(key: Key, size: int) -> Array:
    """50 shapes, 5 to 10 pixels in size, one over the other on a background of any gray.

    The canvas is blurred with a box of 4x4 pixels and sampled at the nearest of its pixels: an
    image of 32 keeps every third or so, and larger ones than the canvas repeat some.

    Args:
      key: consumed.
      size: height and width of the image in pixels.

    Returns:
      [size, size] uint8.
    """
    keys = jax.random.split(key, 5)
    kinds = jax.random.randint(keys[0], (NUM_SHAPES,), 0, 4)
    centres = jax.random.uniform(keys[1], (NUM_SHAPES, 2), maxval=CANVAS)
    sizes = jax.random.randint(keys[2], (NUM_SHAPES, 2), 5, 11).astype(jnp.float32)
    grays = jax.random.randint(keys[3], (NUM_SHAPES,), 0, 256).astype(jnp.float32)
    background = jax.random.randint(keys[4], (), 0, 256).astype(jnp.float32)

    def paint(canvas: Array, shape: tuple[Array, ...]) -> tuple[Array, None]:
        kind, centre, size, gray = shape
        return jnp.where(covered(kind, centre, size), gray, canvas), None

    canvas = jnp.full((CANVAS, CANVAS), background)
    canvas, _ = jax.lax.scan(paint, canvas, (kinds, centres, sizes, grays))
    padded = jnp.pad(canvas, (2, 1), mode="edge")
    windows = [padded[i : i + CANVAS, j : j + CANVAS] for i in range(4) for j in range(4)]
    blurred = functools.reduce(jnp.add, windows) / 16
    nearest = (jnp.arange(size) * 2 + 1) * CANVAS // (2 * size)
    return jnp.round(blurred[nearest][:, nearest]).astype(jnp.uint8)


def covered(kind: Array, centre: Array, size: Array) -> Array:
    """Which pixels of the canvas a shape covers, [100, 100] boolean."""
    pixels = jnp.arange(CANVAS) + 0.5
    y, x = pixels[:, None] - centre[0], pixels[None, :] - centre[1]
    half_height, half_width = size[0] / 2, size[1] / 2
    to_base = (y + half_height) / size[0]  # 0 at a triangle's apex, 1 at its base
    return jnp.stack(
        [
            (jnp.abs(x) <= half_width * to_base) & (to_base <= 1),
            (jnp.abs(y) <= half_height) & (jnp.abs(x) <= half_width),
            y**2 + x**2 <= half_width**2,
            (y / half_height) ** 2 + (x / half_width) ** 2 <= 1,
        ]
    )[kind]
