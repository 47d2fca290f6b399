"""A convolution that stays fast when `jax.vmap` runs several networks at once.

The batching rule of `jax.lax.conv_general_dilated` turns one convolution per clone into a
grouped convolution, several times slower than the separate ones. Here inputs x, kernels k
and outputs y share three kinds of axes,

    batch (x, y)     in features (x, k)     out features (k, y)

and the convolution and its two gradients each contract one kind: (x, k) -> y sums over in
features, (k, y) -> x over out features, (x, y) -> k over the batch. That decides the rule
of all three under `vmap`: if both operands differ between clones, one convolution per clone;
if only one does, a single convolution with the clones folded into the axis that this operand
hands on to the result, such as the out features of all clones that see the same images.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    *,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` without grouped convolutions under `jax.vmap`.

    It differentiates in reverse mode only, to any order. `flax.linen.Conv` takes it as its
    `conv_general_dilated`. Convolutions with groups of their own are left to JAX.
    """
    options |= {"window_strides": window_strides, "padding": padding}
    options |= {"dimension_numbers": dimension_numbers}
    if feature_group_count != 1:
        return lax.conv_general_dilated(
            lhs, rhs, feature_group_count=feature_group_count, **options
        )

    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    (x_batch, x_in), (k_out, k_in), (y_batch, y_out) = (
        spec[:2] for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    )

    def conv(x: Array, k: Array) -> Array:
        return lax.conv_general_dilated(x, k, **options)

    # Under a folding rule these see other sizes than lhs and rhs have, but only along the
    # axes that their operands hand on.
    @_bilinear((x_batch, y_batch), (k_out, y_out))
    def output(x: Array, k: Array) -> Array:
        return conv(x, k)

    @_bilinear((k_in, x_in), (y_batch, x_batch))
    def input_grad(k: Array, y: Array) -> Array:
        x = _resized(lhs, {x_batch: y.shape[y_batch], x_in: k.shape[k_in]})
        return jax.linear_transpose(lambda x: conv(x, k), x)(y)[0]

    @_bilinear((x_in, k_in), (y_out, k_out))
    def kernel_grad(x: Array, y: Array) -> Array:
        k = _resized(rhs, {k_in: x.shape[x_in], k_out: y.shape[y_out]})
        return jax.linear_transpose(lambda k: conv(x, k), k)(y)[0]

    # Each is the gradient of the other two.
    output.defvjp(
        lambda x, k: (output(x, k), (x, k)),
        lambda xk, y: (input_grad(xk[1], y), kernel_grad(xk[0], y)),
    )
    input_grad.defvjp(
        lambda k, y: (input_grad(k, y), (k, y)),
        lambda ky, x: (kernel_grad(x, ky[1]), output(x, ky[0])),
    )
    kernel_grad.defvjp(
        lambda x, y: (kernel_grad(x, y), (x, y)),
        lambda xy, k: (input_grad(k, xy[1]), output(xy[0], k)),
    )
    return output(lhs, rhs)


def _bilinear(a_axes: tuple[int, int], b_axes: tuple[int, int]) -> Callable:
    """Gives a function of (a, b) its rule under `vmap`, and lets it have a gradient.

    Args:
      a_axes: an axis of `a`, and the axis of the result that it becomes.
      b_axes: likewise of `b`.
    """

    def decorate(function: Callable[[Array, Array], Array]) -> jax.custom_vjp:
        batched = jax.custom_batching.custom_vmap(function)

        @batched.def_vmap
        def rule(num: int, is_batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
            if all(is_batched):
                return jnp.stack([batched(a[i], b[i]) for i in range(num)]), True
            if is_batched[0]:
                return _unfold(batched(_fold(a, a_axes[0]), b), a_axes[1], num), True
            return _unfold(batched(a, _fold(b, b_axes[0])), b_axes[1], num), True

        return jax.custom_vjp(batched)

    return decorate


def _fold(x: Array, axis: int) -> Array:
    """Merges clones, axis 0, into `axis` of what remains, clones major."""
    return lax.collapse(jnp.moveaxis(x, 0, axis), axis, axis + 2)


def _unfold(x: Array, axis: int, num: int) -> Array:
    """Inverse of `_fold`."""
    shape = (*x.shape[:axis], num, x.shape[axis] // num, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _resized(x: Array, sizes: dict[int, int]) -> jax.ShapeDtypeStruct:
    """The shape of `x`, with other sizes along some axes."""
    return jax.ShapeDtypeStruct([sizes.get(i, n) for i, n in enumerate(x.shape)], x.dtype)
