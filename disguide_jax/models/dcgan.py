"""The DCGAN of DFMS: a generator without biases and the discriminator that it is trained with."""

import math

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import (
    BatchNorm,
    ConvTranspose,
    Init,
    at_least_float32,
    conv_maps,
    features_axis,
    split_channels,
    swap_maps,
)

Array = jax.Array


def normal_around(mean: float) -> Init:
    """Normal with standard deviation 0.02, DCGAN's initialisation."""
    # A flat draw: see `layers`.
    return lambda key, shape, dtype: (
        mean + 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    )


class DcganGenerator(nn.Module):
    """Latent vectors [N, Z] -> images before their tanh, [N, 32, 32, channels]."""

    width: int  # 64 in the paper: 512-256-128-64 feature maps
    channels: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        def transposed(
            x: Array, features: int, kernel: int, stride: int, padding: int, name: str
        ) -> Array:
            init = normal_around(0)
            return ConvTranspose(features, kernel, stride, padding, init, self.dtype, name=name)(x)

        x = split_channels(z, 1)
        for i in range(4):  # to 4x4, 8x8, 16x16, 32x32
            stride, padding = (1, 0) if i == 0 else (2, 1)
            x = transposed(x, self.width * 2 ** (3 - i), 4, stride, padding, f"main.{3 * i}")
            x = nn.relu(batch_norm(x, f"main.{3 * i + 1}", train=train))
        return at_least_float32(swap_maps(transposed(x, self.channels, 1, 1, 0, "main.12")))


class DcganDiscriminator(nn.Module):
    """Images [N, 32, 32, channels] -> the logit of being real, [N]."""

    width: int  # 64 in the paper: 64-128-256-512 feature maps
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def convolve(x: Array, features: int, kernel: int, padding: int, name: str) -> Array:
            return conv_maps(
                x,
                features,
                kernel,
                stride=2,
                padding=padding,
                bias=False,
                kernel_init=normal_around(0),
                dtype=self.dtype,
                name=name,
            )

        x = swap_maps(x)
        x = nn.leaky_relu(convolve(x, self.width, 4, 1, "main.0"), 0.2)
        for i in range(1, 4):  # to 8x8, 4x4, 2x2
            x = convolve(x, self.width * 2**i, 4, 1, f"main.{3 * i - 1}")
            x = nn.leaky_relu(batch_norm(x, f"main.{3 * i}", train=train), 0.2)
        return at_least_float32(convolve(x, 1, 2, 0, "main.11")).reshape(-1)


def batch_norm(x: Array, name: str, *, train: bool) -> Array:
    """Batch norm whose scale starts around 1 instead of at 1."""
    norm = BatchNorm(axis=features_axis(), scale_init=normal_around(1), name=name)
    return norm(x, train=train)
