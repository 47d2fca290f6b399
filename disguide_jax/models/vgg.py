"""VGGs with batch norm, for images of 32x32 pixels and larger."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import conv_norm, dense, max_pool
from disguide_jax.models.norm import at_least_float32

Array = jax.Array

LEAST_SIZE = 32  # leaves one pixel after five poolings
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Vgg(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    The last maps, averaged to side x side pixels, are flattened channels first, as PyTorch does
    it. Dropout, which some zoos have between linear layers, there is none.
    """

    depth: int  # a key of STAGES
    width: int  # channels of the first stage
    num_classes: int
    hidden: int = 0  # units of each of two hidden layers, in widths; 0: there are none
    side: int = 1
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        at = 0  # in PyTorch's sequence
        for stage, num_convs in enumerate(STAGES[self.depth]):
            for _ in range(num_convs):
                names = f"features.{at}", f"features.{at + 1}"
                features = self.width * min(2**stage, 8)
                x = conv_norm(x, features, 3, bias=True, train=train, dtype=self.dtype, names=names)
                x = nn.relu(x)
                at += 3
            x = max_pool(x)
            at += 1
        x = jnp.moveaxis(average_to(at_least_float32(x), self.side), -1, 1).reshape(len(x), -1)
        if self.hidden:
            for name in ("classifier.0", "classifier.3"):
                x = nn.relu(dense(x, self.hidden * self.width, dtype=self.dtype, name=name))
        name = "classifier.6" if self.hidden else "classifier"
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name=name))


def average_to(x: Array, side: int) -> Array:
    """Maps [N, H, W, channels] averaged, or repeated, to side x side pixels.

    As PyTorch does it: pixel i is the mean of those from i / side to (i + 1) / side of the height,
    rounded outwards.
    """

    def means(size: int) -> Array:
        means = np.zeros((side, size), np.float32)
        for i in range(side):
            start, stop = i * size // side, -(-(i + 1) * size // side)
            means[i, start:stop] = 1 / (stop - start)
        return jnp.asarray(means, x.dtype)

    if x.shape[1:3] == (side, side):
        return x
    return jnp.einsum("nhwc,ih,jw->nijc", x, means(x.shape[1]), means(x.shape[2]))
