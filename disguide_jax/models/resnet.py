"""CIFAR ResNets: a 3x3 stem without pooling, basic blocks, average pool, linear."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import (
    BatchNorm,
    at_least_float32,
    conv,
    dense,
    kaiming_normal_fan_out,
)

Array = jax.Array


class ResNet(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    Strides halve height and width three times, and round odd ones up.
    """

    blocks: tuple[int, ...]  # basic blocks in each stage: (2, 2, 2, 2) is ResNet-18
    width: int  # channels of the stem; each later stage doubles them
    num_classes: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv_norm(
            x: Array,
            conv_name: str,
            norm_name: str,
            features: int,
            kernel: int = 3,
            stride: int = 1,
        ) -> Array:
            x = conv(
                x,
                features,
                kernel,
                stride=stride,
                padding=kernel // 2,
                bias=False,
                kernel_init=kaiming_normal_fan_out,
                dtype=self.dtype,
                name=conv_name,
            )
            return BatchNorm(name=norm_name)(x, train=train)

        x = nn.relu(conv_norm(x, "conv1", "bn1", self.width))
        for stage, num_blocks in enumerate(self.blocks):
            features = self.width * 2**stage
            for block in range(num_blocks):
                at = f"layer{stage + 1}.{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(conv_norm(x, f"{at}.conv1", f"{at}.bn1", features, stride=stride))
                y = conv_norm(y, f"{at}.conv2", f"{at}.bn2", features)
                if stride != 1 or x.shape[-1] != features:
                    names = f"{at}.shortcut.0", f"{at}.shortcut.1"
                    x = conv_norm(x, *names, features, kernel=1, stride=stride)
                x = nn.relu(x + y)
        x = at_least_float32(x).mean(axis=(1, 2))
        return at_least_float32(dense(x, self.num_classes, dtype=self.dtype, name="linear"))
