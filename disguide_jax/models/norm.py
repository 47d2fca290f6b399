"""Batch norms as pure functions, which read and write feature maps as seldom as can be.

On a GPU a norm costs what is moved, not what is computed. So the statistics are those of one
pass, and the gradient is written down: it keeps the maps in their own type and a few vectors,
where JAX by itself would keep maps in float32.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
Normed = tuple[Array, Array, Array]  # maps, and their mean and variance [F], of F features


def at_least_float32(x: Array) -> Array:
    """Widens bfloat16; leaves float32 and float64 alone."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def normalise(x: Array, mean: Array, factor: Array, bias: Array, *, axis: int) -> Array:
    """The maps (x - mean) * factor + bias, computed in float32 at least, in the type of x.

    Numbers are vectors [F] until they meet x: otherwise XLA reshapes them differently with and
    without gradients, and computes what both share twice.
    """
    y = (at_least_float32(x) - across(mean, x, axis)) * across(factor, x, axis)
    return (y + across(bias, x, axis)).astype(x.dtype)


def moments(x: Array, near: Array, *, axis: int) -> tuple[Array, Array]:
    """Mean and biased variance [F] of maps, in one pass and in float32 at least.

    The variance is a difference of squares. That loses the more digits, the more standard
    deviations the mean is away from `near` [F], which is subtracted first and has no gradient:
    at 100 of them, 4 of 7. With the running mean, this can be so in the first steps of a network
    only: 50 steps on, it is 200 times nearer.
    """
    near = jax.lax.stop_gradient(near)
    shifted = at_least_float32(x) - across(near, x, axis)
    count = x.size // x.shape[axis]
    mean = _total(shifted, axis) / count
    square = _total(jnp.square(shifted), axis) / count
    return near + mean, jnp.maximum(square - jnp.square(mean), 0)  # digits lost may leave less


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normed(axis: int, epsilon: float, x: Array, scale: Array, bias: Array, near: Array) -> Normed:
    """What a batch norm makes of maps in train mode.

    Args:
      axis: of features.
      epsilon: added to the variance.
      x: the maps.
      scale: of the result, [F].
      bias: of the result, [F].
      near: what the mean is not far from, [F]; see `moments`.

    Returns:
      The maps, in the type of x, their mean [F] and their biased variance [F].
    """
    mean, var = moments(x, near, axis=axis)
    return normalise(x, mean, scale * jax.lax.rsqrt(var + epsilon), bias, axis=axis), mean, var


def _forward(
    axis: int, epsilon: float, x: Array, scale: Array, bias: Array, near: Array
) -> tuple[Normed, tuple[Array, ...]]:
    y, mean, var = normed(axis, epsilon, x, scale, bias, near)
    return (y, mean, var), (x, scale, mean, var)


def _backward(
    axis: int, epsilon: float, kept: tuple[Array, ...], grads: Normed
) -> tuple[Array, ...]:
    x, scale, mean, var = kept
    y_grad, mean_grad, var_grad = at_least_float32(grads[0]), *grads[1:]
    centred = at_least_float32(x) - across(mean, x, axis)
    count = x.size // x.shape[axis]
    # Two sums over the maps, and then a * y_grad + b * (x - mean) + c with three vectors.
    total, along = _total(y_grad, axis), _total(y_grad * centred, axis)
    inverse = jax.lax.rsqrt(var + epsilon)
    a = scale * inverse
    b = (2 * var_grad - a * jnp.square(inverse) * along) / count
    c = (mean_grad - a * total) / count
    x_grad = across(a, x, axis) * y_grad + across(b, x, axis) * centred + across(c, x, axis)
    return x_grad.astype(x.dtype), inverse * along, total, jnp.zeros_like(mean)


normed.defvjp(_forward, _backward)


def across(numbers: Array, x: Array, axis: int) -> Array:
    """Numbers of features [F] as they broadcast against maps, whose features are on `axis`."""
    return jnp.expand_dims(numbers, _others(x, axis))


def _total(x: Array, axis: int) -> Array:
    """The sum [F] of maps over all axes but that of features."""
    return x.sum(_others(x, axis))


def _others(x: Array, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(x.ndim) if other != axis % x.ndim)
