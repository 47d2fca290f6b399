import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from disguide_jax.models.conv import conv_general_dilated

CLONES = 2
IN_AXES = [(0, 0), (None, 0), (0, None)]  # of images and kernels
GEOMETRIES = [  # kernel size, stride, padding
    (3, 2, [(1, 1), (1, 1)]),
    (3, 1, [(1, 1), (1, 1)]),
    (1, 2, "VALID"),
    (5, 1, "VALID"),
]
CASES = list(zip(GEOMETRIES, ["float32", "bfloat16", "float64", "float32"], strict=True))


def make_conv(conv, geometry=GEOMETRIES[0], **options):
    _, stride, padding = geometry
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lambda x, k: conv(x, k, (stride, stride), padding, **options)


def make_pair(geometry=GEOMETRIES[0], **options):
    """The convolution under test and that of JAX."""
    return (
        make_conv(conv_general_dilated, geometry, **options),
        make_conv(jax.lax.conv_general_dilated, geometry, **options),
    )


def make_operands(in_axes, geometry=GEOMETRIES[0], dtype="float32"):
    """Images [C?, 3, 8, 7, 2] and kernels [C?, size, size, 2, 5]."""
    size = geometry[0]
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=shape if axis is None else (CLONES, *shape)).astype(jnp.dtype(dtype))
        for shape, axis in zip([(3, 8, 7, 2), (size, size, 2, 5)], in_axes, strict=True)
    ]


def loss(y):
    """A scalar whose gradient differs from entry to entry."""
    return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def output_and_grads(conv, x, k):
    """The output, and the gradients of its loss for images and kernels."""
    grads = jax.grad(lambda x, k: loss(conv(x, k)), argnums=(0, 1))
    return conv(x, k), *grads(x, k)


def looped(conv, in_axes, x, k):
    """`output_and_grads` clone by clone; clones are axis 0 of every result."""
    one = jax.jit(functools.partial(output_and_grads, conv))
    xs, ks = (a if axis == 0 else [a] * CLONES for a, axis in zip((x, k), in_axes, strict=True))
    return stack([one(x, k) for x, k in zip(xs, ks, strict=True)])


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e, eps = np.float64(a), np.float64(e), float(jnp.finfo(e.dtype).eps)
        np.testing.assert_allclose(a, e, rtol=0, atol=30 * eps * np.abs(e).max())


def assert_no_groups(text):
    assert set(re.findall(r"(?:feature|batch)_group_count = (\d+)", text)) == {"1"}


@pytest.mark.parametrize(
    ("geometry", "dtype"),
    [*CASES, ((5, 2, "SAME"), "float32"), ((3, 2, [(0, 2), (1, 0)]), "float32")],
)
def test_equals_jax_without_vmap(geometry, dtype):
    with jax.enable_x64(dtype == "float64"):
        operands = make_operands((None, None), geometry, dtype)
        actual, expected = (
            jax.jit(functools.partial(output_and_grads, conv))(*operands)
            for conv in make_pair(geometry)
        )
        assert expected[0].dtype == dtype
        assert_close(actual, expected)


@pytest.mark.parametrize("in_axes", IN_AXES)
@pytest.mark.parametrize(("geometry", "dtype"), CASES)
def test_vmap_of_grad_and_grad_of_vmap_equal_a_loop(in_axes, geometry, dtype):
    conv, jax_conv = make_pair(geometry)

    @jax.jit
    def both(x, k):
        def total(x, k):
            return jax.vmap(lambda x, k: loss(conv(x, k)), in_axes)(x, k).sum()

        vmap_of_grad = jax.vmap(functools.partial(output_and_grads, conv), in_axes)(x, k)
        return vmap_of_grad, jax.grad(total, argnums=(0, 1))(x, k)

    with jax.enable_x64(dtype == "float64"):
        operands = make_operands(in_axes, geometry, dtype)
        vmap_of_grad, grad_of_vmap = both(*operands)
        expected = looped(jax_conv, in_axes, *operands)
        assert_close(vmap_of_grad, expected)
        # The gradient for what clones share is the sum of theirs.
        sums = [g.sum(0) if a is None else g for g, a in zip(expected[1:], in_axes, strict=True)]
        assert_close(grad_of_vmap, sums)


@pytest.mark.parametrize("order", ["vmap(grad)", "grad(vmap)"])
@pytest.mark.parametrize(
    ("in_axes", "expected"),  # convolutions: forward, and the gradients of images and kernels
    [((0, 0), 2 + 2 + 2), ((None, 0), 1 + 2 + 2), ((0, None), 1 + 1 + 2)],
)
def test_number_of_convolutions_and_none_grouped(order, in_axes, expected):
    conv = make_conv(conv_general_dilated)

    def one(x, k):
        return loss(conv(x, k))

    if order == "vmap(grad)":
        step = jax.vmap(jax.grad(one, argnums=(0, 1)), in_axes)
    else:
        step = jax.grad(lambda x, k: jax.vmap(one, in_axes)(x, k).sum(), argnums=(0, 1))
    text = jax.jit(step).lower(*make_operands(in_axes)).as_text()
    assert text.count("stablehlo.convolution") == expected
    assert_no_groups(text)


def test_nested_vmap_equals_loops():
    x, k = make_operands((None, 0))
    k = np.stack([k, 2 * k, 3 * k])
    conv, jax_conv = make_pair()
    one = functools.partial(output_and_grads, conv)
    step = jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(None, 0)))
    assert_close(step(x, k), stack([looped(jax_conv, (None, 0), x, ks) for ks in k]))
    assert_no_groups(step.lower(x, k).as_text())


def test_second_derivatives_equal_those_of_jax():
    def penalty(conv, x, k):
        grads = jax.grad(lambda x, k: loss(conv(x, k)), argnums=(0, 1))(x, k)
        return sum(loss(jnp.sin(g)) for g in grads)

    def grads(conv, x, k):
        def total(x, k):
            return jax.vmap(functools.partial(penalty, conv))(x, k).sum()

        return jax.grad(total, argnums=(0, 1))(x, k)

    actual, expected = (
        jax.jit(functools.partial(grads, conv))(*make_operands((0, 0))) for conv in make_pair()
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("in_axes", IN_AXES)
def test_other_layouts_and_dilations(in_axes):
    conv, jax_conv = make_pair(
        GEOMETRIES[1],
        dimension_numbers=("NCHW", "OHWI", "HWCN"),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
    )
    x, k = make_operands(in_axes)
    x, k = np.moveaxis(x, -1, -3), np.moveaxis(k, -1, -4)
    actual = jax.jit(jax.vmap(functools.partial(output_and_grads, conv), in_axes))(x, k)
    assert_close(actual, looped(jax_conv, in_axes, x, k))


def test_default_dimension_numbers_are_those_of_jax():
    x, k = jnp.ones((2, 3, 6, 6)), jnp.ones((4, 3, 3, 3))
    actual = conv_general_dilated(x, k, (1, 1), "VALID")
    assert_close(actual, jax.lax.conv_general_dilated(x, k, (1, 1), "VALID"))


def test_inside_scan_checkpoint_and_eval_shape():
    x, k = make_operands((None, 0))
    conv, jax_conv = make_pair()
    scales = np.arange(1, 4, dtype=np.float32)

    @functools.partial(jax.checkpoint, static_argnums=0)
    def one(conv, scale, k):
        return jax.vmap(lambda k: loss(conv(scale * x, k)))(k).sum()

    def scanned(k):
        def body(sum, scale):
            return sum + one(conv, scale, k), None

        return jax.lax.scan(body, 0.0, scales)[0]

    def unrolled(k):
        return sum(one(jax_conv, scale, k) for scale in scales)

    grad = jax.jit(jax.grad(scanned))
    assert jax.eval_shape(grad, k).shape == k.shape
    assert_close(grad(k), jax.jit(jax.grad(unrolled))(k))


def test_compiles_once_and_lets_its_operands_be_donated():
    x, k = make_operands((None, 0))
    conv = make_conv(conv_general_dilated)
    num_traces = 0

    @functools.partial(jax.jit, donate_argnums=0)
    def step(k, x):
        nonlocal num_traces
        num_traces += 1
        return k - 0.1 * jax.grad(lambda k: jax.vmap(lambda k: loss(conv(x, k)))(k).sum())(k)

    k = jnp.asarray(k)
    for _ in range(3):
        previous, k = k, step(k, x)
        assert previous.is_deleted()
    assert num_traces == 1


def test_flax_layer_in_mixed_precision():
    """bfloat16 in the convolution, float32 in the parameters and their gradients."""
    make_layer = functools.partial(nn.Conv, 5, (3, 3), 2, padding=1, dtype=jnp.bfloat16)
    x, kernel = make_operands((None, 0))
    params = {"kernel": kernel, "bias": np.ones((CLONES, 5), np.float32)}

    @functools.partial(jax.jit, static_argnums=0)
    def step(conv, params):
        layer = make_layer(conv_general_dilated=conv)

        def one(params):
            y = layer.apply({"params": params}, x)
            assert y.dtype == jnp.bfloat16
            return loss(y.astype(jnp.float32))

        return jax.grad(lambda p: jax.vmap(one)(p).sum())(params)

    actual = step(conv_general_dilated, params)
    expected = step(jax.lax.conv_general_dilated, params)
    for name in params:
        assert actual[name].dtype == jnp.float32
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=0.02 * scale)


def test_convolution_with_groups_of_its_own():
    x, _ = make_operands((None, None))
    kernel = np.random.default_rng(1).normal(size=(CLONES, 3, 3, 1, 6)).astype(np.float32)
    actual, expected = (
        jax.vmap(make_conv(conv, feature_group_count=2), (None, 0))(x, kernel)
        for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("in_axes", IN_AXES)
@pytest.mark.parametrize(
    ("cached", "images", "sizes"),  # of the pieces; an image has 8 x 7 x 5 = 280 numbers
    [(280, 3, [1, 1, 1]), (420, 3, [2, 1]), (2**18, 3, [3]), (1, 1, [1]), (1, 20, [3] * 6 + [2])],
)
def test_kernel_gradients_in_pieces(in_axes, cached, images, sizes, monkeypatch):
    monkeypatch.setattr("disguide_jax.models.conv.CACHED", cached)
    rng = np.random.default_rng(0)
    x, k = (
        rng.normal(size=shape if axis is None else (CLONES, *shape)).astype(np.float32)
        for shape, axis in zip([(images, 8, 7, 2), (3, 3, 2, 5)], in_axes, strict=True)
    )
    conv, jax_conv = make_pair(GEOMETRIES[1])
    step = jax.jit(jax.vmap(functools.partial(output_and_grads, conv), in_axes))
    assert_close(step(x, k), looped(jax_conv, in_axes, x, k))

    x, k = (a if axis is None else a[0] for a, axis in zip((x, k), in_axes, strict=True))
    text = jax.jit(jax.grad(lambda k, x: loss(conv(x, k)))).lower(k, x).as_text()
    pair = r"convolution.*tensor<(\d+)x8x7x\dxf32>, tensor<(\d+)x8x7x\dxf32>"
    assert [(int(a), int(b)) for a, b in re.findall(pair, text)] == [(n, n) for n in sizes]
