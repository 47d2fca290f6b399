"""MobileNetV2 for small images, as three zoos have it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.models.layers import conv, conv_norm, dense
from disguide_jax.models.norm import at_least_float32

Array = jax.Array

BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # in each stage
CHANNELS = (16, 24, 32, 64, 96, 160, 320)  # of its output, for the usual width
USUAL_WIDTH, LAST_CHANNELS = 32, 1280


class Variant(NamedTuple):
    """What tells the zoos' networks apart."""

    strides: tuple[int, ...] = (1, 1, 2, 2, 1, 2, 1)  # of the stages' first blocks
    relu: Callable[[Array], Array] = nn.relu6
    lean: bool = False  # the first block does not expand, and channels are multiples of 8
    convolved: bool = False  # shortcuts are convolved where the number of channels changes
    bias: bool = False  # convolutions have biases, the first is 1x1, the last gives the logits


KUANGLIU = Variant(relu=nn.relu, convolved=True)
TORCHVISION = Variant(lean=True)  # and chenyaofo's and huyvnphan's
WEIAICUNZAI = Variant(strides=(1, 2, 2, 2, 1, 1, 1), bias=True)


class MobileNetV2(nn.Module):
    """Images [N, H, W, channels] -> logits [N, K].

    Strides round odd heights and widths up. Dropout before the linear layer, there is none.
    """

    variant: Variant
    width: int  # channels of the stem
    num_classes: int
    dtype: DTypeLike | None = None  # compute dtype; None follows parameters and input

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        variant = self.variant
        convolved = functools.partial(conv_norm, bias=variant.bias, train=train, dtype=self.dtype)
        kernel = 1 if variant.bias else 3
        x = convolved(x, self.width, kernel, padding=1, names=("conv1", "bn1"))
        x, block = variant.relu(x), 0
        for stage, num_blocks in enumerate(BLOCKS):
            features = self._scaled(CHANNELS[stage])
            for i in range(num_blocks):
                at, stride = f"layers.{block}", 1 if i else variant.strides[stage]
                expansion = 6 if stage else 1
                y, hidden = x, expansion * x.shape[-1]
                if not (variant.lean and block == 0):
                    y = variant.relu(convolved(y, hidden, 1, names=(f"{at}.conv1", f"{at}.bn1")))
                names = f"{at}.conv2", f"{at}.bn2"
                y = convolved(y, hidden, 3, stride=stride, groups=hidden, names=names)
                y = variant.relu(y)
                y = convolved(y, features, 1, names=(f"{at}.conv3", f"{at}.bn3"))
                if stride == 1 and x.shape[-1] == features:
                    y = x + y
                elif stride == 1 and variant.convolved:
                    names = f"{at}.shortcut.0", f"{at}.shortcut.1"
                    y = convolved(x, features, 1, names=names) + y
                x, block = y, block + 1
        last = self._scaled(LAST_CHANNELS)
        if variant.lean:
            last = max(last, LAST_CHANNELS)
        x = variant.relu(convolved(x, last, 1, names=("conv2", "bn2")))
        x = at_least_float32(x).mean(axis=(1, 2))
        return at_least_float32(self._logits(x))

    def _scaled(self, channels: int) -> int:
        if not self.variant.lean:
            return max(1, channels * self.width // USUAL_WIDTH)
        # 1.4 times the usual width, rounded, is 48: a public network has it.
        exact = channels * (1.4 if self.width == 48 else self.width / USUAL_WIDTH)
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * exact else rounded

    def _logits(self, x: Array) -> Array:
        if not self.variant.bias:
            return dense(x, self.num_classes, dtype=self.dtype, name="linear")
        x = x[:, None, None]
        return conv(x, self.num_classes, 1, bias=True, dtype=self.dtype, name="linear")[:, 0, 0]
