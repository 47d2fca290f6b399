"""CIFAR ResNets: a 3x3 stem, basic blocks, average pool, linear."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import conv_norm, dense, stem_pool
from disguide_jax.models.norm import at_least_float32, relu

Array = jax.Array


class ResNet(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    Strides halve height and width once fewer than there are stages, and round odd ones up.
    """

    blocks: tuple[int, ...]  # basic blocks in each stage: (2, 2, 2, 2) is ResNet-18
    width: int  # channels of the stem; each later stage doubles them
    num_classes: int
    pool: bool = False  # a max-pool follows the stem
    padded: bool = False  # shortcuts pad channels with zeros (option A) and convolve nothing
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        convolved = functools.partial(conv_norm, train=train, dtype=self.dtype)
        rectified = functools.partial(convolved, rectified=True)
        x = rectified(x, self.width, 3, names=("conv1", "bn1"))
        if self.pool:
            x = stem_pool(x)
        for stage, num_blocks in enumerate(self.blocks):
            features = self.width * 2**stage
            for block in range(num_blocks):
                at = f"layer{stage + 1}.{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                names = f"{at}.conv1", f"{at}.bn1"
                y = rectified(x, features, 3, stride=stride, names=names)
                y = convolved(y, features, 3, names=(f"{at}.conv2", f"{at}.bn2"))
                if stride != 1 and self.padded:
                    x = pad_channels(x[:, ::2, ::2], features)
                elif stride != 1 or x.shape[-1] != features:
                    names = f"{at}.shortcut.0", f"{at}.shortcut.1"
                    x = convolved(x, features, 1, stride=stride, names=names)
                x = relu(x + y)
        x = at_least_float32(x).mean(axis=(1, 2))
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name="linear"))


def pad_channels(x: Array, features: int) -> Array:
    """[N, H, W, channels] with as many zeros before the channels as after them."""
    before = (features - x.shape[-1]) // 2
    after = features - x.shape[-1] - before
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))
