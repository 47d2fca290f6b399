"""Gaussian noise on probabilities, drawn once for each image.

Fresh noise would average out for who asks about an image again and again. Here the noise is
drawn by a key that is made of the image itself: the same image gets the same noise, in another
batch and after a restart too, and another image gets another. Whoever knows SECRET can take the
noise off; a provider would keep such a number to himself.
"""

import jax
import jax.numpy as jnp
from flax import struct

from disguide_jax.core import pixels
from disguide_jax.core.types import Array, Key
from disguide_jax.victims.defences.kind import Defence, Kind, both, probabilities_only

SECRET = 0x5EED
PARTS_OF_A_LEVEL = 4096  # of the 256 levels of a pixel, that make another image


class Noise(Defence):
    """Adds noise, takes what falls below 0 for 0, and renormalises.

    Where nothing is left above 0 the answer is sent as it was.
    """

    scale: float
    keeps_label: bool = struct.field(pytree_node=False)  # the likeliest class stays the likeliest

    def __call__(self, images: Array, probs: Array) -> Array:
        """Probabilities [N, K] that sum to 1."""
        draw = jax.vmap(lambda key, like: jax.random.normal(key, like.shape, like.dtype))
        noisy = jnp.maximum(probs + self.scale * draw(keys_of(images), probs), 0)
        total = noisy.sum(axis=-1, keepdims=True)
        sent = jnp.where(total > 0, noisy / jnp.where(total > 0, total, 1), probs)
        return _swapped(sent, probs) if self.keeps_label else sent


def keys_of(images: Array) -> Key:
    """A key for each image, [N], made of its pixels and of nothing else.

    Images [N, H, W, channels] in [-1, 1] that differ by less than about 1e-6 may share one: what
    is the same image to a victim, 8 bits decoded here or there, has to be the same.
    """
    levels = jnp.round((images + 1) * (pixels.HALF_RANGE * PARTS_OF_A_LEVEL))
    words = levels.astype(jnp.int32).astype(jnp.uint32).reshape(len(images), -1)
    places = _mixed(jnp.arange(words.shape[1], dtype=jnp.uint32) + 1)[None]
    # Sums of integers are the same in any order, on any device.
    halves = [_mixed(words ^ part).sum(axis=1, dtype=jnp.uint32) for part in (places, ~places)]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SECRET), halves[0])
    return jax.vmap(jax.random.fold_in)(keys, halves[1])


def _mixed(words: Array) -> Array:
    """Words of which every bit depends on every bit of what they were (MurmurHash3's end)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)


def _swapped(sent: Array, probs: Array) -> Array:
    """What is sent, with its largest value in the place of the victim's likeliest class."""
    num_classes = sent.shape[-1]
    here = jax.nn.one_hot(jnp.argmax(probs, axis=-1), num_classes, dtype=bool)
    largest = jax.nn.one_hot(jnp.argmax(sent, axis=-1), num_classes, dtype=bool)
    kept = jnp.sum(sent, axis=-1, keepdims=True, where=here)
    return jnp.where(here, sent.max(axis=-1, keepdims=True), jnp.where(largest, kept, sent))


KIND = Kind(
    name="noise",
    keys=("noise_scale", "noise_keeps_label"),
    make=lambda owner: Noise(owner.victim.noise_scale, owner.victim.noise_keeps_label),
    about=lambda victim: (
        f"noise of scale {victim.noise_scale:g}, the same for the same image"
        + (", which keeps the likeliest class" if victim.noise_keeps_label else "")
    ),
    changes=lambda victim: (probabilities_only if victim.noise_keeps_label else both)(victim),
)
