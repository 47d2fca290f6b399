"""Batch norms as pure functions, which read and write feature maps as seldom as can be.

On a GPU a norm costs what is moved, not what is computed. So the statistics are those of one
pass, and the gradient is written down: it keeps the maps in their own type and a few vectors,
where JAX by itself would keep maps in float32.
"""

import functools

import jax
import jax.numpy as jnp

from disguide_jax.core import backend

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


@jax.custom_vjp
def relu(x: Array) -> Array:
    """What is positive of maps, with a gradient that reads this and not what it was made of."""
    return jnp.maximum(x, 0)


# Not y > 0, which XLA takes for x > 0.
relu.defvjp(lambda x: (relu(x),) * 2, lambda y, grad: (jnp.where(y != 0, grad, 0),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def normed(
    axis: int, epsilon: float, rectified: bool, x: Array, scale: Array, bias: Array, near: Array
) -> Normed:
    """What a batch norm makes of maps in train mode.

    Args:
      axis: of features.
      epsilon: added to the variance.
      rectified: whether a ReLU follows, to become one operation with it.
      x: the maps.
      scale: of the result, [F].
      bias: of the result, [F].
      near: what the mean is not far from, [F]; see `moments`.

    Returns:
      The maps, in the type of x, their mean [F] and their biased variance [F].
    """
    mean, var = moments(x, near, axis=axis)
    y = normalise(x, mean, scale * jax.lax.rsqrt(var + epsilon), bias, axis=axis)
    return jnp.maximum(y, 0) if rectified else y, mean, var


def _forward(
    axis: int, epsilon: float, rectified: bool, x: Array, scale: Array, bias: Array, near: Array
) -> tuple[Normed, tuple[Array, ...]]:
    y, mean, var = normed(axis, epsilon, rectified, x, scale, bias, near)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(
    axis: int, epsilon: float, rectified: bool, kept: tuple[Array, ...], grads: Normed
) -> tuple[Array, ...]:
    x, scale, bias, mean, var = kept
    y_grad, mean_grad, var_grad = grads
    inverse = jax.lax.rsqrt(var + epsilon)
    a = scale * inverse

    def read(vectors: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array, ...]]:
        """The gradient of what was not cut off, and x - mean."""
        grad = at_least_float32(y_grad)
        if rectified:
            # So that XLA computes again what was cut off: it would rather store that.
            vectors = jax.lax.optimization_barrier(vectors)
            grad = jnp.where(normalise(x, *vectors, axis=axis) > 0, grad, 0)
        return grad, at_least_float32(x) - across(vectors[0], x, axis), vectors

    # Two sums over the maps, and then a * grad + b * (x - mean) + c with three vectors.
    grad, centred, vectors = read((mean, a, bias))
    total, along = _total(grad, axis), _total(grad * centred, axis)
    b = (2 * var_grad - a * jnp.square(inverse) * along) / (x.size // x.shape[axis])
    c = (mean_grad - a * total) / (x.size // x.shape[axis])
    grad, centred, _ = read(vectors)
    x_grad = across(a, x, axis) * grad + across(b, x, axis) * centred + across(c, x, axis)
    return x_grad.astype(x.dtype), inverse * along, total, jnp.zeros_like(mean)


normed.defvjp(_forward, _backward)


def across(numbers: Array, x: Array, axis: int) -> Array:
    """Numbers of features [F] as they broadcast against maps, whose features are on `axis`."""
    return jnp.expand_dims(numbers, _others(x, axis))


def _total(x: Array, axis: int) -> Array:
    """The sum [F] of maps over all axes but that of features."""
    first, *others = _others(x, axis)
    if not backend.sums_need_columns():
        return x.sum((first, *others))
    # The barrier keeps XLA from making one sum of both.
    columns = jax.lax.optimization_barrier(x.sum(first, keepdims=True))
    return columns.sum((first, *others))


def _others(x: Array, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(x.ndim) if other != axis % x.ndim)
