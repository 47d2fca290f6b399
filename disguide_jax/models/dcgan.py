"""The DCGAN of DFMS: a generator without biases and the discriminator that it is trained with."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import BatchNorm, Init, at_least_float32, conv

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
        first = -(-self.size // 8)
        margin = (8 * first - self.size) // 2
        layers = (first, 1, 0), (4, 2, 1), (4, 2, 1), (4, 2, 1 + margin)
        x = z[:, None, None, :]
        for i, layer in enumerate(layers):  # kernel, stride, padding; to 4x4, 8x8, 16x16, 32x32
            features = self.width * 2 ** (3 - i)
            x = ConvTranspose(features, *layer, self.dtype, name=f"main.{3 * i}")(x)
            x = batch_norm(x, f"main.{3 * i + 1}", train=train)
            x = nn.relu(x)
        x = ConvTranspose(self.channels, 1, 1, 0, self.dtype, name="main.12")(x)
        return at_least_float32(x)


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
            return conv(
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
        x = nn.leaky_relu(convolve(x, self.width, 4, 2, 1 + margin, "main.0"), 0.2)
        for i in range(1, 4):  # of 32x32 pixels to 16x16, 8x8, 4x4, 2x2
            x = convolve(x, self.width * 2**i, 4, 2, 1, f"main.{3 * i - 1}")
            x = nn.leaky_relu(batch_norm(x, f"main.{3 * i}", train=train), 0.2)
        return at_least_float32(convolve(x, 1, last, last, 0, "main.11")).reshape(-1)


class ConvTranspose(nn.Module):
    """PyTorch's transposed convolution of [N, H, W, channels], without bias.

    The kernel is that of the convolution which it transposes, [h, w, out, in], so that the
    state dict has PyTorch's layout.
    """

    features: int
    kernel: int
    stride: int
    padding: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, self.features, x.shape[-1])
        kernel = self.param("kernel", normal_around(0), shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return jax.lax.conv_transpose(
            x,
            kernel,
            strides=(self.stride,) * 2,
            padding=[(self.kernel - 1 - self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )


def batch_norm(x: Array, name: str, *, train: bool) -> Array:
    """Batch norm whose scale starts around 1 instead of at 1."""
    return BatchNorm(scale_init=normal_around(1), name=name)(x, train=train)
