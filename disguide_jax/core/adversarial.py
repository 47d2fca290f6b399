"""Adversarial examples: images that differ from real ones by little, and are taken for others.

Images are in [-1, 1] as everywhere; bounds are of pixels in [0, 1], as in the literature.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from disguide_jax.core.types import Array, Key

GradientFn = Callable[[Array], Array]  # images -> the gradient of each one's own loss, as shaped
RANGE = 2.0  # of images in [-1, 1], beside that of pixels in [0, 1]
OVERSHOOT = 2.5  # of all steps together, in bounds (Madry et al., 2018)


def fgsm(gradient_fn: GradientFn, images: Array, *, epsilon: float) -> Array:
    """The fast gradient sign method, one step of length epsilon (Goodfellow et al., 2015).

    Args:
      gradient_fn: of the loss, which is to be increased, of each image by itself.
      images: [N, H, W, channels] in [-1, 1].
      epsilon: the largest change of a pixel, of pixels in [0, 1].

    Returns:
      Images of the same shape in [-1, 1].

    Raises:
      AssertionError: of other shapes.
    """
    return _step(gradient_fn, images, images, length=epsilon, epsilon=epsilon)


def pgd(gradient_fn: GradientFn, images: Array, key: Key, *, epsilon: float, steps: int) -> Array:
    """Projected gradient descent from a random start (Madry et al., 2018).

    Args:
      gradient_fn: of the loss, which is to be increased, of each image by itself.
      images: [N, H, W, channels] in [-1, 1].
      key: consumed.
      epsilon: the largest change of a pixel, of pixels in [0, 1].
      steps: each of 2.5 epsilon / steps.

    Returns:
      Images of the same shape in [-1, 1].

    Raises:
      AssertionError: of other shapes.
    """
    bound = RANGE * epsilon
    noise = jax.random.uniform(key, images.shape, images.dtype, -bound, bound)
    length = OVERSHOOT * epsilon / steps
    found = jnp.clip(images + noise, -1, 1)
    for _ in range(steps):
        found = _step(gradient_fn, found, images, length=length, epsilon=epsilon)
    return found


def _step(
    gradient_fn: GradientFn, found: Array, images: Array, *, length: float, epsilon: float
) -> Array:
    """One step up the loss, kept within epsilon of the images and within the range of pixels."""
    chex.assert_rank(images, 4)
    chex.assert_equal_shape([found, images])
    bound = RANGE * epsilon
    moved = found + RANGE * length * jnp.sign(gradient_fn(found))
    return jnp.clip(jnp.clip(moved, images - bound, images + bound), -1, 1)
