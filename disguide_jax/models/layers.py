"""The layers that all networks share, with PyTorch's defaults.

Every module of a network is named by its PyTorch path ("layer1.0.conv1"), so that its
variables are a flat dict which `disguide_jax.files.weights` maps to a state dict mechanically.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from disguide_jax.core import backend
from disguide_jax.errors import UserError
from disguide_jax.models import norm, windows
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
    groups: int = 1,
    bias: bool,
    kernel_init: Init = uniform_fan_in,
    dtype: DTypeLike | None,
    name: str,
    promote_dtype: Callable[..., Any] = nn.dtypes.promote_dtype,
) -> Array:
    """A square convolution of [N, H, W, channels], padded explicitly.

    "SAME" would pad a stride of 2 on the other side than PyTorch does.
    """
    if kernel == 1 and padding == 0:  # a gradient with zeros between pixels is never stored
        x, stride = x[:, ::stride, ::stride], 1
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=uniform_bias(kernel * kernel * x.shape[-1] // groups),
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        promote_dtype=promote_dtype,
        name=name,
    )(x)


def conv_norm(
    x: Array,
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    train: bool,
    dtype: DTypeLike | None,
    names: tuple[str, str],
    rectified: bool = False,
) -> Array:
    """A convolution of [N, H, W, channels] and its batch norm, by the names of both, and a ReLU.

    Without a padding of its own the maps keep their size, but for the stride. In eval mode the
    norm goes into the kernel and a shift, so that a GPU makes one operation of everything.
    """
    convolve = functools.partial(
        conv,
        x,
        features,
        kernel,
        stride=stride,
        padding=kernel // 2 if padding is None else padding,
        groups=groups,
        bias=bias,
        kernel_init=kaiming_normal_fan_out,
        dtype=dtype,
        name=names[0],
    )
    if train:
        return BatchNorm(rectified=rectified, name=names[1])(convolve(), train=True)
    factor, shift = FrozenNorm(name=names[1])(features)
    x = convolve(promote_dtype=functools.partial(_promote_scaled, factor))
    x += shift.astype(x.dtype)[None, None, None]
    return norm.relu(x) if rectified else x


def _promote_scaled(
    factor: Array, x: Array, kernel: Array, bias: Array | None, *, dtype: DTypeLike | None
) -> list[Array | None]:
    """What is convolved, in one type, where each feature of the result is multiplied."""
    bias = None if bias is None else bias * factor
    return nn.dtypes.promote_dtype(x, kernel * factor[None, None, None], bias, dtype=dtype)


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
    stride: int = 1,
    padding: int = 0,
    doubled: bool = False,
    bias: bool = True,
    kernel_init: Init = uniform_fan_in,
    dtype: DTypeLike | None,
    name: str,
) -> Array:
    """A square convolution of feature maps.

    Args:
      x: the maps.
      features: of the output.
      kernel: its height and width.
      stride: divides the kernel's height and width, and those of the padded maps.
      padding: on every side.
      doubled: height and width are doubled first, by repeating pixels; for a 3x3 kernel with a
        padding of 1.
      bias: whether one is added.
      kernel_init: the kernel's initial values.
      dtype: compute dtype; None follows parameters and maps.
      name: of the layer.
    """
    if not backend.batch_goes_last():
        x = repeat_pixels(x) if doubled else x
        return conv(
            x,
            features,
            kernel,
            stride=stride,
            padding=padding,
            bias=bias,
            kernel_init=kernel_init,
            dtype=dtype,
            name=name,
        )
    convolve = functools.partial(windows.conv, padding=padding, stride=stride)
    return WindowsConv(
        features,
        kernel,
        windows.conv_doubled if doubled else convolve,
        bias,
        kernel_init,
        dtype,
        name=name,
    )(x)


class WindowsConv(nn.Module):
    """A convolution of maps [channels, H, W, N]."""

    features: int
    kernel: int
    convolve: Callable[[Array, Array], Array]
    bias: bool
    kernel_init: Init
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[0], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if not self.bias:
            return self.convolve(*nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype))
        bias_init = uniform_bias(math.prod(shape[:-1]))
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.convolve(x, kernel) + bias[:, None, None, None]


class ConvTranspose(nn.Module):
    """PyTorch's transposed convolution of feature maps, without bias.

    The kernel is that of the convolution which it transposes, [h, w, out, in], so that the
    state dict has PyTorch's layout.
    """

    features: int
    kernel: int
    stride: int  # divides kernel
    padding: int
    kernel_init: Init
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, self.features, x.shape[features_axis()])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if backend.batch_goes_last():
            return windows.conv_transposed(x, kernel, self.padding, self.stride)
        return jax.lax.conv_transpose(
            x,
            kernel,
            strides=(self.stride,) * 2,
            padding=[(self.kernel - 1 - self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )


def max_pool(x: Array) -> Array:
    """The largest of every 2x2 pixels of feature maps; an odd row or column is left out."""
    # Not nn.max_pool: its gradient, select-and-scatter, is slow on CPUs.
    return _squares(x).max(axis=(2, 4))


def mean_pool(x: Array) -> Array:
    """The mean of every 2x2 pixels of feature maps; an odd row or column is left out."""
    return _squares(x).mean(axis=(2, 4))


def _squares(x: Array) -> Array:
    first, height, width, last = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(first, height // 2, 2, width // 2, 2, last)


def stem_pool(x: Array) -> Array:
    """The max-pool after torchvision's stems: of 3x3 pixels with a stride of 2, padded by 1."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


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


class _Norm(nn.Module):
    """What a batch norm of F features holds."""

    affine: bool = True
    epsilon: float = 1e-5
    scale_init: Init = nn.initializers.ones

    def _held(self, num: int) -> tuple[nn.Variable[Array], nn.Variable[Array], Array, Array]:
        """Running mean and variance, scale and bias, of so many features."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (num,))
        var = self.variable("batch_stats", "var", jnp.ones, (num,))
        if not self.affine:
            return mean, var, jnp.ones(num), jnp.zeros(num)
        scale = self.param("scale", self.scale_init, (num,), jnp.float32)
        return mean, var, scale, self.param("bias", nn.initializers.zeros, (num,))


class BatchNorm(_Norm):
    """PyTorch's batch norm over all axes but one.

    It differs from Flax's in that the running variance is the unbiased one, which a clone's
    answers in eval mode depend on, and that statistics, in float32 at least, lose no digits
    where the mean is large. In train mode it raises UserError for a single value per feature,
    which has no variance.
    """

    axis: int = -1  # of features
    momentum: float = 0.1  # weight of the new value, PyTorch's convention
    rectified: bool = False  # a ReLU follows

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        running_mean, running_var, scale, bias = self._held(x.shape[self.axis])
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            y = norm.normalise(x, running_mean.value, factor, bias, axis=self.axis)
            return norm.relu(y) if self.rectified else y
        count = x.size // x.shape[self.axis]
        if count == 1:
            raise UserError(
                "a batch norm gets a single image with maps of one pixel, which have no "
                "variance: config.batch_size must be larger"
            )
        y, mean, var = norm.normed(
            self.axis, self.epsilon, self.rectified, x, scale, bias, running_mean.value
        )
        self._track(running_mean, mean)
        self._track(running_var, var * (count / (count - 1)))
        return y

    def _track(self, running: nn.Variable[Array], new: Array) -> None:
        if not self.is_initializing():
            running.value = (1 - self.momentum) * running.value + self.momentum * new


class FrozenNorm(_Norm):
    """The same in eval mode, as a factor [F] and a shift [F]."""

    @nn.compact
    def __call__(self, num_features: int) -> tuple[Array, Array]:
        mean, var, scale, bias = self._held(num_features)
        factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
        return factor, bias - mean.value * factor
