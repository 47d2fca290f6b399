"""LeNet-5 and its half, for images of 32x32 pixels and larger."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import conv_maps, dense, join_channels, max_pool, swap_maps
from disguide_jax.models.norm import at_least_float32

Array = jax.Array

LEAST_SIZE = 32  # leaves one pixel after three 5x5 convolutions and two poolings


class LeNet5(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    `width` is the number of first feature maps: 6 is LeNet-5 (6-16-120-84), 3 its half. Height and
    width of the images are multiples of 4. The last maps, of (H - 28) / 4 pixels each way, are
    flattened channels first, as PyTorch does it: fc1 grows with the images.
    """

    width: int
    num_classes: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        del train  # no batch norm, no dropout
        widths = [features * self.width // 6 for features in (6, 16, 120)]
        x = swap_maps(x)
        for i, features in enumerate(widths, start=1):
            x = conv_maps(x, features, 5, dtype=self.dtype, name=f"conv{i}")
            x = nn.relu(x)
            if i < 3:
                x = max_pool(x)
        x = nn.relu(dense(join_channels(x), 84 * self.width // 6, dtype=self.dtype, name="fc1"))
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name="fc2"))
