"""The DCGAN of DFMS: a generator without biases and the discriminator that it is trained with."""

import math

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import (
    BatchNorm,
    ConvTranspose,
    Init,
    conv_maps,
    features_axis,
    split_channels,
    swap_maps,
)
from disguide_jax.models.norm import at_least_float32

Array = jax.Array


def normal_around(mean: float) -> Init:
    """Normal with standard deviation 0.02, DCGAN's initialisation."""
    # A flat draw: see `layers`.
    return lambda key, shape, dtype: (
        mean + 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    )


class DcganGenerator(nn.Module):
    """Latent vectors [N, Z] -> images before their tanh, [N, size, size, channels].

    The first layer's maps have an eighth of the size, rounded up, and are doubled three times. The
    padding of the last doubling cuts what that makes too large, as much on every side.
    """

    width: int  # 64 in the paper: 512-256-128-64 feature maps
    size: int  # a multiple of 4
    channels: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        def transposed(
            x: Array, features: int, kernel: int, stride: int, padding: int, name: str
        ) -> Array:
            init = normal_around(0)
            return ConvTranspose(features, kernel, stride, padding, init, self.dtype, name=name)(x)

        first = -(-self.size // 8)
        margin = (8 * first - self.size) // 2
        layers = (first, 1, 0), (4, 2, 1), (4, 2, 1), (4, 2, 1 + margin)
        x = split_channels(z, 1)
        for i, layer in enumerate(layers):  # kernel, stride, padding; to 4x4, 8x8, 16x16, 32x32
            x = transposed(x, self.width * 2 ** (3 - i), *layer, f"main.{3 * i}")
            x = nn.relu(batch_norm(x, f"main.{3 * i + 1}", train=train))
        return at_least_float32(swap_maps(transposed(x, self.channels, 1, 1, 0, "main.12")))


class DcganDiscriminator(nn.Module):
    """Images [N, H, W, channels] -> the logit of being real, [N].

    Height and width are equal. Four layers halve them, and a last kernel covers what is left. The
    first layer's padding makes them a multiple of 16.
    """

    width: int  # 64 in the paper: 64-128-256-512 feature maps
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def convolve(
            x: Array, features: int, kernel: int, stride: int, padding: int, name: str
        ) -> Array:
            return conv_maps(
                x,
                features,
                kernel,
                stride=stride,
                padding=padding,
                bias=False,
                kernel_init=normal_around(0),
                dtype=self.dtype,
                name=name,
            )

        size = x.shape[1]
        last = -(-size // 16)
        margin = (16 * last - size) // 2
        x = swap_maps(x)
        x = nn.leaky_relu(convolve(x, self.width, 4, 2, 1 + margin, "main.0"), 0.2)
        for i in range(1, 4):  # of 32x32 pixels to 16x16, 8x8, 4x4, 2x2
            x = convolve(x, self.width * 2**i, 4, 2, 1, f"main.{3 * i - 1}")
            x = nn.leaky_relu(batch_norm(x, f"main.{3 * i}", train=train), 0.2)
        return at_least_float32(convolve(x, 1, last, last, 0, "main.11")).reshape(-1)


def batch_norm(x: Array, name: str, *, train: bool) -> Array:
    """Batch norm whose scale starts around 1 instead of at 1."""
    norm = BatchNorm(axis=features_axis(), scale_init=normal_around(1), name=name)
    return norm(x, train=train)
