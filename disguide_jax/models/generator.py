"""The three-convolution generator of DFME, which DisGUIDE uses unchanged (Section 4)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import BatchNorm, at_least_float32, conv, dense

Array = jax.Array


class Generator(nn.Module):
    """Latent vectors [N, Z] -> images before their tanh, [N, 32, 32, channels].

    The tanh is left to the caller because zeroth-order methods perturb what goes into it.
    """

    width: int  # 64 in the paper: 128-128-64 feature maps
    channels: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        def conv3x3(x: Array, features: int, name: str) -> Array:
            return conv(x, features, 3, padding=1, bias=True, dtype=self.dtype, name=name)

        def norm(x: Array, name: str, affine: bool = True) -> Array:
            return BatchNorm(affine=affine, name=name)(x, train=train)

        x = dense(z, 2 * self.width * 8 * 8, dtype=self.dtype, name="l1.0")
        x = x.reshape(-1, 2 * self.width, 8, 8).transpose(0, 2, 3, 1)  # PyTorch's order
        x = upsample(norm(x, "conv_blocks0.0"))
        x = norm(conv3x3(x, 2 * self.width, "conv_blocks1.0"), "conv_blocks1.1")
        x = upsample(nn.leaky_relu(x, 0.2))
        x = norm(conv3x3(x, self.width, "conv_blocks2.0"), "conv_blocks2.1")
        x = conv3x3(nn.leaky_relu(x, 0.2), self.channels, "conv_blocks2.3")
        return at_least_float32(norm(x, "conv_blocks2.4", affine=False))


def upsample(x: Array) -> Array:
    """Doubles height and width of [N, H, W, channels] by repeating pixels."""
    # Not jnp.repeat: the gradient of its gather is a slow scatter.
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)
