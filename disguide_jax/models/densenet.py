"""DenseNet-121 for small images, as three zoos have it."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import (
    BatchNorm,
    conv,
    dense,
    kaiming_normal_fan_out,
    mean_pool,
    stem_pool,
)
from disguide_jax.models.norm import at_least_float32

Array = jax.Array

BLOCKS = (6, 12, 24, 16)  # layers in each


class DenseNet(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    Height and width are halved between blocks, and odd ones rounded down.
    """

    width: int  # channels of the stem, twice those that a layer adds
    num_classes: int
    normed: bool = False  # a batch norm and a ReLU follow the stem: torchvision's
    pool: bool = False  # and then a max-pool
    linear: bool = False  # no ReLU between blocks: weiaicunzai's
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        growth, between = self.width // 2, "down" if self.linear else "trans"
        convolve = functools.partial(
            conv, bias=False, kernel_init=kaiming_normal_fan_out, dtype=self.dtype
        )
        x = convolve(x, self.width, 3, padding=1, name="conv1")
        if self.normed:
            x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.pool:
            x = stem_pool(x)
        for i, num_layers in enumerate(BLOCKS, start=1):
            for layer in range(num_layers):
                at = f"dense{i}.{layer}"
                y = nn.relu(BatchNorm(name=f"{at}.bn1")(x, train=train))
                y = convolve(y, 4 * growth, 1, name=f"{at}.conv1")
                y = nn.relu(BatchNorm(name=f"{at}.bn2")(y, train=train))
                y = convolve(y, growth, 3, padding=1, name=f"{at}.conv2")
                # kuangliu's puts new channels first, which later layers' weights follow.
                new_last = self.normed or self.linear
                x = jnp.concatenate([x, y] if new_last else [y, x], axis=-1)
            if i < len(BLOCKS):
                y = BatchNorm(name=f"{between}{i}.bn")(x, train=train)
                y = y if self.linear else nn.relu(y)
                x = mean_pool(convolve(y, x.shape[-1] // 2, 1, name=f"{between}{i}.conv"))
        x = at_least_float32(nn.relu(BatchNorm(name="bn")(x, train=train))).mean(axis=(1, 2))
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name="linear"))
