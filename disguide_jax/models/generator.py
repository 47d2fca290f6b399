"""The three-convolution generator of DFME, which DisGUIDE uses unchanged (Section 4)."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import (
    BatchNorm,
    conv_maps,
    dense,
    features_axis,
    split_channels,
    swap_maps,
)
from disguide_jax.models.norm import at_least_float32

Array = jax.Array


class Generator(nn.Module):
    """Latent vectors [N, Z] -> images before their tanh, [N, size, size, channels].

    The tanh is left to the caller because zeroth-order methods perturb what goes into it.
    """

    width: int  # 64 in the paper: 128-128-64 feature maps
    size: int  # a multiple of 4, because it is doubled twice
    channels: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        def conv3x3(x: Array, features: int, name: str, doubled: bool = True) -> Array:
            return conv_maps(
                x, features, 3, padding=1, doubled=doubled, dtype=self.dtype, name=name
            )

        def norm(x: Array, name: str, affine: bool = True) -> Array:
            return BatchNorm(affine, axis=features_axis(), name=name)(x, train=train)

        first = self.size // 4
        x = dense(z, 2 * self.width * first * first, dtype=self.dtype, name="l1.0")
        x = norm(split_channels(x, first), "conv_blocks0.0")
        x = norm(conv3x3(x, 2 * self.width, "conv_blocks1.0"), "conv_blocks1.1")
        x = nn.leaky_relu(x, 0.2)
        x = norm(conv3x3(x, self.width, "conv_blocks2.0"), "conv_blocks2.1")
        x = nn.leaky_relu(x, 0.2)
        x = conv3x3(x, self.channels, "conv_blocks2.3", doubled=False)
        return at_least_float32(swap_maps(norm(x, "conv_blocks2.4", affine=False)))
