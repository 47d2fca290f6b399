"""The range of pixels: [-1, 1] everywhere, and 256 levels of it where they are stored or sent."""

import jax
import jax.numpy as jnp

Array = jax.Array

HALF_RANGE = 127.5  # levels from the middle, 0, to black, -1, or white, 1
BLACK = -1.0


def encode(images: Array, dtype: jnp.dtype) -> Array:
    """Images in [-1, 1] as they are stored or sent; uint8 keeps the nearest of 256 levels."""
    if dtype == jnp.uint8:
        return jnp.round((jnp.clip(images, -1, 1) + 1) * HALF_RANGE).astype(jnp.uint8)
    return images.astype(dtype)


def decode(stored: Array) -> Array:
    """Stored images as floats in [-1, 1]; the inverse of `encode` up to its rounding."""
    if stored.dtype == jnp.uint8:
        return stored.astype(jnp.float32) / HALF_RANGE - 1
    return stored.astype(jnp.promote_types(stored.dtype, jnp.float32))


def as_sent(images: Array, dtype: jnp.dtype) -> Array:
    """Images rounded to what is sent, uint8 or bfloat16; float32 sends them as they are."""
    return images if dtype == jnp.float32 else decode(encode(images, dtype)).astype(images.dtype)
