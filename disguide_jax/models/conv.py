"""A convolution that stays fast when `jax.vmap` runs several networks at once.

The batching rule of `jax.lax.conv_general_dilated` makes one grouped convolution of those of
all clones, which takes several times as long as they do. Here inputs x, kernels k and outputs
y share three kinds of axes,

    batch (x and y)     in features (x and k)     out features (k and y)

and the convolution and its two gradients each sum over one kind and keep the others:
(x, k) -> y sums over in features, (k, y) -> x over out features, (y, x) -> k over the batch.
Under `vmap` each becomes one convolution per clone. Where only one operand differs between
clones, a single convolution can do, with the clones folded into the axis that this operand
hands on: the out features for all first layers, which see the same images.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from disguide_jax.core import backend

Array = jax.Array
Bilinear = Callable[[Array, Array], Array]
Differentiable = jax.custom_vjp[Array]


CACHED = 2**18  # numbers of an operand of a kernel gradient that stay in a CPU's cache
MOST_PIECES = 8

_LEFT_TO_JAX = contextvars.ContextVar("left to JAX", default=False)


@contextlib.contextmanager
def left_to_jax() -> Iterator[None]:
    """Convolutions traced in this block are JAX's own under `jax.vmap`, to compare with."""
    token = _LEFT_TO_JAX.set(True)
    try:
        yield
    finally:
        _LEFT_TO_JAX.reset(token)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, with convolutions per clone under `jax.vmap`.

    Arguments, result and gradients are the same, and `flax.linen.Conv` takes it as its
    `conv_general_dilated`. It differentiates in reverse mode only, to any order. A convolution
    that has groups of its own is left to JAX.
    """
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )
    if feature_group_count != 1 or _LEFT_TO_JAX.get():
        return conv(lhs, rhs)

    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    x_batch, k_out = numbers.lhs_spec[0], numbers.rhs_spec[0]
    y_batch, y_out = numbers.out_spec[:2]
    x_like = jax.ShapeDtypeStruct(lhs.shape, lhs.dtype)
    k_like = jax.ShapeDtypeStruct(rhs.shape, rhs.dtype)

    @bilinear((x_batch, y_batch), (k_out, y_out))
    def output(x: Array, k: Array) -> Array:
        return conv(x, k)

    @bilinear(None, (y_batch, x_batch))
    def input_grad(k: Array, y: Array) -> Array:
        shape = list(x_like.shape)
        shape[x_batch] = y.shape[y_batch]  # clones times N if they are folded into it
        x = jax.ShapeDtypeStruct(shape, x_like.dtype)
        return jax.linear_transpose(lambda x: conv(x, k), x)(y)[0]

    def kernel_grad_of(y: Array, x: Array) -> Array:
        return jax.linear_transpose(lambda k: conv(x, k), k_like)(y)[0]

    @bilinear(None, None)  # on a CPU, folding clones into k_out costs more than it saves
    def kernel_grad(y: Array, x: Array) -> Array:
        if not backend.fused_transposes_are_slow():
            return kernel_grad_of(y, x)
        # XLA transposes both, which takes five times as long fused with what made them.
        y, x = lax.optimization_barrier((y, x))
        num = _piece(y.shape[y_batch], max(x.size, y.size))
        cuts = range(0, y.shape[y_batch], num)
        pieces = [(_cut(y, y_batch, i, num), _cut(x, x_batch, i, num)) for i in cuts]
        return functools.reduce(jnp.add, (kernel_grad_of(*piece) for piece in pieces))

    # Each is the gradient of the next, in a circle.
    set_gradients(output, input_grad, kernel_grad)
    set_gradients(input_grad, kernel_grad, output)
    set_gradients(kernel_grad, output, input_grad)
    return output(lhs, rhs)


def _piece(batch: int, size: int) -> int:
    """How many images of a batch a kernel gradient is computed from at a time."""
    # Beyond a CPU's cache it takes three times as long; many pieces take long to compile.
    num_pieces = max(1, min(-(-size // CACHED), MOST_PIECES, batch))
    return -(-batch // num_pieces)


def _cut(x: Array, axis: int, start: int, num: int) -> Array:
    return lax.slice_in_dim(x, start, min(start + num, x.shape[axis]), axis=axis)


def bilinear(
    a_axes: tuple[int, int] | None, b_axes: tuple[int, int] | None
) -> Callable[[Bilinear], Differentiable]:
    """Gives a bilinear function of arrays (a, b) its rule under `vmap`, as a decorator.

    Args:
      a_axes: the axis of `a` to fold clones into if only `a` has them, and the axis of the
        result in which they then are; None calls the function once per clone instead.
      b_axes: likewise of `b`.
    """

    def decorate(function: Bilinear) -> Differentiable:
        batched = jax.custom_batching.custom_vmap(function)

        @batched.def_vmap
        def rule(num: int, is_batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
            a_batched, b_batched = is_batched
            if not b_batched and a_axes:
                return _unfold(batched(_fold(a, a_axes[0]), b), a_axes[1], num), True
            if not a_batched and b_axes:
                return _unfold(batched(a, _fold(b, b_axes[0])), b_axes[1], num), True
            clones = [(a[i] if a_batched else a, b[i] if b_batched else b) for i in range(num)]
            return jnp.stack([batched(*clone) for clone in clones]), True

        return jax.custom_vjp(batched)

    return decorate


def set_gradients(function: Differentiable, a_grad: Bilinear, b_grad: Bilinear) -> None:
    """Lets c = function(a, b) have the gradients a_grad(b, c) and b_grad(c, a)."""
    function.defvjp(
        lambda a, b: (function(a, b), (a, b)),
        lambda ab, c: (a_grad(ab[1], c), b_grad(c, ab[0])),
    )


def _fold(x: Array, axis: int) -> Array:
    """Merges clones, axis 0, into `axis` of the rest, where clone comes before index."""
    return lax.collapse(jnp.moveaxis(x, 0, axis), axis, axis + 2)


def _unfold(x: Array, axis: int, num: int) -> Array:
    """Inverse of `_fold`."""
    shape = (*x.shape[:axis], num, x.shape[axis] // num, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)
