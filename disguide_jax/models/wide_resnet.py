"""WideResNets: pre-activation blocks in three stages."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import BatchNorm, conv, dense, kaiming_normal_fan_out
from disguide_jax.models.norm import at_least_float32

Array = jax.Array

SIZES = ((16, 1), (16, 2), (16, 4), (22, 2), (28, 2), (28, 4), (28, 10), (34, 10), (40, 1), (40, 2))
"""Depths and factors that have a name; the module takes all."""


class WideResNet(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    Two zoos differ: in xternalz's blocks a convolved shortcut sees maps after the first batch norm
    and strides are those of the first convolution; in meliketoy's, which have biases, it sees maps
    before, and strides are those of the second.
    """

    depth: int  # 6n + 4, for n blocks in each stage
    factor: int  # channels of the first stage, in channels of the stem
    width: int  # channels of the stem
    num_classes: int
    bias: bool = False  # meliketoy's
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = self._conv(x, self.width, 3, 1, "conv1")
        for stage in range(3):
            features = self.width * self.factor * 2**stage
            for block in range((self.depth - 4) // 6):
                at = f"block{stage + 1}.layer.{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                strides = (1, stride) if self.bias else (stride, 1)
                active = nn.relu(BatchNorm(name=f"{at}.bn1")(x, train=train))
                y = self._conv(active, features, 3, strides[0], f"{at}.conv1")
                y = nn.relu(BatchNorm(name=f"{at}.bn2")(y, train=train))
                y = self._conv(y, features, 3, strides[1], f"{at}.conv2")
                if x.shape[-1] != features:
                    x = x if self.bias else active
                    x = self._conv(x, features, 1, stride, f"{at}.convShortcut")
                x = x + y
        x = at_least_float32(nn.relu(BatchNorm(name="bn1")(x, train=train))).mean(axis=(1, 2))
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name="fc"))

    def _conv(self, x: Array, features: int, kernel: int, stride: int, name: str) -> Array:
        return conv(
            x,
            features,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=self.bias,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
            name=name,
        )
