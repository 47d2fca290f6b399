"""Convolutions as matrix products of windows, against JAX's own of images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from disguide_jax.models import layers, windows

STRIDED = [  # batch, height and width, in and out features, kernel, padding, stride
    (3, (8, 6), 2, 5, 4, 1, 2),
    (2, (8, 8), 1, 3, 4, 1, 2),
    (2, (4, 4), 5, 1, 4, 1, 2),  # more in than out
    (3, (2, 2), 6, 1, 2, 0, 2),  # a dense layer
    (2, (4, 4), 3, 2, 4, 0, 1),  # likewise
    (2, (5, 3), 3, 2, 1, 0, 1),
    (2, (7, 7), 2, 3, 3, 1, 3),
]
CASES = [  # batch, height and width, in and out features, kernel, padding
    (3, (8, 7), 2, 5, 3, 1),
    (1, (6, 6), 1, 1, 3, 0),
    (2, (9, 6), 1, 6, 5, 0),
    (2, (5, 5), 4, 7, 5, 0),  # a dense layer
    (4, (7, 8), 5, 2, 3, 1),  # more in than out
    (2, (7, 6), 3, 1, 2, 0),
    (1, (1, 1), 1, 1, 1, 0),
    (2, (3, 4), 3, 2, 2, 1),
]


def make_operands(case, dtype="float32", clones=()):
    batch, size, num_in, num_out, kernel, *_ = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_in, *size, batch)).astype(dtype)
    return x, rng.normal(size=(*clones, kernel, kernel, num_in, num_out)).astype(dtype)


def jax_conv(x, k, padding, stride=1):
    return jax.lax.conv_general_dilated(
        x, k, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=("CHWN", "HWIO", "CHWN")
    )


def jax_conv_transposed(x, k, padding, stride):
    return jax.lax.conv_transpose(
        x,
        k,
        (stride,) * 2,
        [(len(k) - 1 - padding,) * 2] * 2,
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        transpose_kernel=True,
    )


def jax_conv_doubled(x, k):
    return jax_conv(x.repeat(2, axis=1).repeat(2, axis=2), k, 1)


def loss(y):
    """A scalar whose gradient differs from entry to entry."""
    return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def output_and_grads(conv, x, k):
    return conv(x, k), *jax.grad(lambda x, k: loss(conv(x, k)), argnums=(0, 1))(x, k)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        atol = 100 * float(jnp.finfo(e.dtype).eps) * np.abs(e).max()
        np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def assert_same(conv, expected, x, k):
    assert_close(*(jax.jit(functools.partial(output_and_grads, c))(x, k) for c in (conv, expected)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_jax(case, dtype):
    options = {"padding": case[-1]}
    with jax.enable_x64(dtype == "float64"):
        assert_same(
            functools.partial(windows.conv, **options),
            functools.partial(jax_conv, **options),
            *make_operands(case, dtype),
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", STRIDED)
def test_strides_and_their_transposes_are_those_of_jax(case, dtype):
    options = dict(zip(("padding", "stride"), case[-2:], strict=True))
    with jax.enable_x64(dtype == "float64"):
        x, k = make_operands(case, dtype)
        y = jax_conv(x, k, **options)
        for conv, expected, maps in (
            (windows.conv, jax_conv, x),
            (windows.conv_transposed, jax_conv_transposed, y),
        ):
            pair = (functools.partial(c, **options) for c in (conv, expected))
            assert_same(*pair, maps, k)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("batch", "size", "num_in", "num_out"),
    [(3, (4, 5), 2, 3), (1, (1, 1), 1, 1), (2, (3, 1), 9, 2), (2, (2, 2), 4, 1)],
)
def test_a_convolution_of_doubled_maps_is_that_of_repeated_pixels(
    batch, size, num_in, num_out, dtype
):
    operands = make_operands((batch, size, num_in, num_out, 3, 1), dtype)
    with jax.enable_x64(dtype == "float64"):
        assert_same(windows.conv_doubled, jax_conv_doubled, *operands)


@pytest.mark.parametrize("clones", [1, 3])
@pytest.mark.parametrize("in_axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("case", [CASES[0], CASES[4]])
def test_clones_under_vmap(case, in_axes, clones):
    x, k = make_operands(case)
    scale = np.arange(1, clones + 1, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    x, k = (a if axis is None else a * scale for a, axis in zip((x, k), in_axes, strict=True))

    def both(conv, x, k):
        one = functools.partial(conv, padding=case[-1])
        each = jax.vmap(functools.partial(output_and_grads, one), in_axes)(x, k)
        total = jax.grad(lambda x, k: loss(jax.vmap(one, in_axes)(x, k)), argnums=(0, 1))
        return each, total(x, k)

    assert_close(*(jax.jit(functools.partial(both, c))(x, k) for c in (windows.conv, jax_conv)))


@pytest.mark.parametrize("case", [CASES[0], CASES[4]])
def test_second_derivatives(case):
    def penalty(conv, x, k):
        one = functools.partial(conv, padding=case[-1])
        return sum(loss(jnp.sin(g)) for g in output_and_grads(one, x, k))

    def grads(conv, x, k):
        return jax.grad(functools.partial(penalty, conv), argnums=(0, 1))(x, k)

    operands = make_operands(case)
    assert_close(
        *(jax.jit(functools.partial(grads, c))(*operands) for c in (windows.conv, jax_conv))
    )


@pytest.mark.parametrize("doubled", [False, True])
def test_the_layer_is_initialised_and_computes_like_that_of_other_layouts(doubled, monkeypatch):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = layers.swap_maps(images)
            x = layers.conv_maps(x, 5, 3, padding=1, doubled=doubled, dtype=None, name="conv")
            x = layers.BatchNorm(axis=layers.features_axis(), name="norm")(x, train=True)
            y = layers.join_channels(x)
            return y, layers.swap_maps(layers.split_channels(y, x.shape[1]))

    images = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    found = []
    for batch_last in (True, False):
        monkeypatch.setattr("disguide_jax.core.backend.batch_goes_last", lambda b=batch_last: b)
        variables = Layer().init(jax.random.key(0), images)
        found.append((variables["params"], Layer().apply(variables, images, mutable="batch_stats")))
    assert_close(found[0], found[1])
