"""The layers that all networks share, with PyTorch's defaults.

Every module of a network is named by its PyTorch path ("layer1.0.conv1"), so that its
variables are a flat dict which `disguide_jax.files.weights` maps to a state dict mechanically.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.core import backend
from disguide_jax.errors import UserError
from disguide_jax.models import windows
from disguide_jax.models.conv import conv_general_dilated

Array = jax.Array
Init = Callable[[Array, tuple[int, ...], DTypeLike], Array]  # key, shape, dtype

# Both initialisers draw flat arrays: for a draw of four axes XLA's CPU compiler takes seconds, for
# one of one axis a tenth, and a ResNet-34 has 37 of them.


def kaiming_normal_fan_out(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Normal with standard deviation sqrt(2 / fan out)."""
    scale = math.sqrt(2 * shape[-2] / math.prod(shape))
    return scale * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def uniform_fan_in(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """PyTorch's default for linear and convolution kernels: uniform within 1 / sqrt(fan in)."""
    bound = math.sqrt(shape[-1] / math.prod(shape))
    return bound * jax.random.uniform(key, (math.prod(shape),), dtype, -1).reshape(shape)


def uniform_bias(fan_in: int) -> Init:
    """PyTorch's default for biases: uniform within 1 / sqrt(fan in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def conv(
    x: Array,
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool,
    kernel_init: Init = uniform_fan_in,
    dtype: DTypeLike | None,
    name: str,
) -> Array:
    """A square convolution of [N, H, W, channels], padded explicitly.

    "SAME" would pad a stride of 2 on the other side than PyTorch does.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=uniform_bias(kernel * kernel * x.shape[-1]),
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )(x)


def dense(x: Array, features: int, *, dtype: DTypeLike | None, name: str) -> Array:
    """A linear layer on [N, features]."""
    return nn.Dense(
        features,
        kernel_init=uniform_fan_in,
        bias_init=uniform_bias(x.shape[-1]),
        dtype=dtype,
        name=name,
    )(x)


def conv_maps(
    x: Array,
    features: int,
    kernel: int,
    *,
    padding: int = 0,
    doubled: bool = False,
    dtype: DTypeLike | None,
    name: str,
) -> Array:
    """A square convolution of feature maps, with a bias.

    Args:
      x: the maps.
      features: of the output.
      kernel: its height and width.
      padding: on every side.
      doubled: height and width are doubled first, by repeating pixels; for a 3x3 kernel with a
        padding of 1.
      dtype: compute dtype; None follows parameters and maps.
      name: of the layer.
    """
    if not backend.batch_goes_last():
        x = repeat_pixels(x) if doubled else x
        return conv(x, features, kernel, padding=padding, bias=True, dtype=dtype, name=name)
    convolve = functools.partial(windows.conv, padding=padding)
    return WindowsConv(
        features, kernel, windows.conv_doubled if doubled else convolve, dtype, name=name
    )(x)


class WindowsConv(nn.Module):
    """A convolution of maps [channels, H, W, N], with a bias."""

    features: int
    kernel: int
    convolve: Callable[[Array, Array], Array]
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[0], self.features)
        kernel = self.param("kernel", uniform_fan_in, shape, jnp.float32)
        bias_init = uniform_bias(math.prod(shape[:-1]))
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.convolve(x, kernel) + bias[:, None, None, None]


def repeat_pixels(x: Array) -> Array:
    """Doubles height and width of [N, H, W, channels]."""
    # Not jnp.repeat: the gradient of its gather is a slow scatter.
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)


def features_axis() -> int:
    """The axis of channels in feature maps.

    They are [N, H, W, channels], or [channels, H, W, N] where the backend prefers it.
    """
    return 0 if backend.batch_goes_last() else 3


def swap_maps(x: Array) -> Array:
    """Images [N, H, W, channels] as feature maps, or feature maps as images."""
    if not backend.batch_goes_last():
        return x
    return jax.lax.optimization_barrier(x.swapaxes(0, 3))  # once, not within what reads it


def split_channels(x: Array, size: int) -> Array:
    """[N, channels * size * size], flattened as PyTorch does it, -> feature maps."""
    x = x.reshape(len(x), -1, size, size)
    return jnp.moveaxis(x, 0, -1) if backend.batch_goes_last() else jnp.moveaxis(x, 1, -1)


def join_channels(x: Array) -> Array:
    """Feature maps -> [N, channels * H * W], the order in which PyTorch flattens."""
    x = jnp.moveaxis(x, -1, 0) if backend.batch_goes_last() else jnp.moveaxis(x, -1, 1)
    return x.reshape(len(x), -1)


def at_least_float32(x: Array) -> Array:
    """Widens bfloat16; leaves float32 and float64 alone."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nn.Module):
    """PyTorch's batch norm over all axes but one.

    It differs from Flax's in that the running variance is the unbiased one, which a clone's
    answers in eval mode depend on, and that statistics are computed in two passes (the
    difference of squares loses half the digits), in float32 at least. In train mode it raises
    UserError for a single value per feature, which has no variance.
    """

    affine: bool = True
    axis: int = -1  # of features
    momentum: float = 0.1  # weight of the new value, PyTorch's convention
    epsilon: float = 1e-5
    scale_init: Init = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        features = (x.shape[self.axis],)
        axes = tuple(axis for axis in range(x.ndim) if axis != self.axis % x.ndim)
        across = tuple(1 if i in axes else n for i, n in enumerate(x.shape))  # broadcasts against x
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        wide = at_least_float32(x)
        if train:
            mean = wide.mean(axes, keepdims=True)
            var = jnp.square(wide - mean).mean(axes, keepdims=True)
            count = x.size // x.shape[self.axis]
            if count == 1:
                raise UserError(
                    "a batch norm gets a single image with maps of one pixel, which have no "
                    "variance: config.batch_size must be larger"
                )
            self._track(running_mean, mean)
            self._track(running_var, var * (count / (count - 1)))
        else:
            mean, var = (r.value.reshape(across) for r in (running_mean, running_var))
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.affine:
            factor *= self.param("scale", self.scale_init, features, jnp.float32).reshape(across)
        y = (wide - mean) * factor
        if self.affine:
            y += self.param("bias", nn.initializers.zeros, features).reshape(across)
        return y.astype(x.dtype)

    def _track(self, running: nn.Variable[Array], new: Array) -> None:
        if not self.is_initializing():
            new = new.reshape(running.value.shape)
            running.value = (1 - self.momentum) * running.value + self.momentum * new
