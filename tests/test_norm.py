"""Batch norms in one pass, and their gradient in closed form, against plain autodiff and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from disguide_jax import models
from disguide_jax.core import backend
from disguide_jax.models import layers, norm

EPSILON = 1e-5


def two_passes(axis, epsilon, rectified, x, scale, bias, near):
    """The same by the definition, left to JAX to differentiate."""
    del near
    axes = tuple(other for other in range(x.ndim) if other != axis % x.ndim)
    mean = x.mean(axes, keepdims=True)
    var = jnp.square(x - mean).mean(axes, keepdims=True)
    y = (x - mean) / jnp.sqrt(var + epsilon) * norm.across(scale, x, axis)
    y += norm.across(bias, x, axis)
    return nn.relu(y) if rectified else y, mean.squeeze(), var.squeeze()


def drawn(axis, *clones):
    """Maps of 3 features on `axis`, and what belongs to features, in float64."""
    rng = np.random.default_rng(0)
    x = 2 + rng.normal(size=(*clones, 4, 5, 6, 3)) * [1, 3, 0.1]
    return np.moveaxis(x, -1, axis % 4 + len(clones)), *rng.normal(size=(3, *clones, 3))


def some_loss(function, axis, rectified=False):
    """A number that all three results tell in."""

    def loss(*args):
        y, mean, var = function(axis, EPSILON, rectified, *args)
        weights = jnp.sin(jnp.arange(y.size)).reshape(y.shape)
        return (weights * (y + y**2)).sum() + (mean**3).sum() + (var**2).sum()

    return loss


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_norm_and_its_gradients_are_those_of_the_definition(axis, rectified, name):
    """Whatever the backend has summed first, and whether a ReLU follows or not."""
    with jax.enable_x64(True), backend.pretended(name):
        args = drawn(axis)
        for ours, plain in zip(
            norm.normed(axis, EPSILON, rectified, *args),
            two_passes(axis, EPSILON, rectified, *args),
            strict=True,
        ):
            np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-12)
        ours, plain = (
            jax.grad(some_loss(function, axis, rectified), argnums=(0, 1, 2, 3))(*args)
            for function in (norm.normed, two_passes)
        )
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        assert not ours[3].any()  # `near` has none


@pytest.mark.parametrize("rectified", [False, True])
def test_its_gradient_can_be_differentiated_again(rectified):
    with jax.enable_x64(True):
        x, *vectors = drawn(-1)

        def slope(function):
            loss = some_loss(function, -1, rectified)
            return jax.grad(lambda x: (jax.grad(loss)(x, *vectors) ** 2).sum())(x)

        np.testing.assert_allclose(slope(norm.normed), slope(two_passes), rtol=1e-9, atol=1e-6)


def test_clones_at_once_are_normed_as_one_by_one():
    with jax.enable_x64(True):
        args = drawn(-1, 2)
        grad = jax.value_and_grad(some_loss(norm.normed, -1, True), argnums=(0, 1, 2))
        at_once = jax.vmap(grad)(*args)
        for i in range(2):
            alone = grad(*(arg[i] for arg in args))
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-12),
                at_once,
                alone,
            )


def test_no_digits_are_lost_where_the_running_mean_has_come_near():
    """A mean of 1,000 standard deviations, in float32; the running mean is off by 3 of them."""
    x = (1e3 + np.random.default_rng(0).normal(size=(64, 8, 8, 2))).astype(np.float32)
    exact = x.astype(np.float64)
    mean, var = norm.moments(jnp.asarray(x), jnp.array([1003.0, 997.0]), axis=-1)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)


def test_a_variance_that_has_lost_its_digits_is_not_below_zero():
    x = jnp.full((4, 8, 8, 16), 1e3) + 1e-4 * jnp.arange(16)[None, None, None]
    _, var = norm.moments(x, jnp.zeros(16), axis=-1)
    assert (var >= 0).all()
    y, _, _ = norm.normed(-1, EPSILON, False, x, jnp.ones(16), jnp.zeros(16), jnp.zeros(16))
    assert jnp.isfinite(y).all()


def test_bfloat16_maps_are_computed_on_in_float32_and_kept_as_they_are():
    args = [jnp.asarray(arg, jnp.float32) for arg in drawn(-1)]
    half = args[0].astype(jnp.bfloat16)
    y, mean, _ = norm.normed(-1, EPSILON, True, half, *args[1:])
    assert (y.dtype, mean.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(mean, half.astype(jnp.float32).mean((0, 1, 2)), rtol=1e-5)
    _, pullback = jax.vjp(lambda x: norm.normed(-1, EPSILON, True, x, *args[1:])[0], half)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= half.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_a_relu_whose_gradient_reads_its_result_is_jaxs():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf])
    (y, pullback), (same, plain) = jax.vjp(norm.relu, x), jax.vjp(nn.relu, x)
    grad = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(*pullback(grad), *plain(grad))


class Convolved(nn.Module):
    bias: bool

    @nn.compact
    def __call__(self, x, *, train):
        names = ("conv", "norm")
        return layers.conv_norm(
            x, 4, 1, stride=2, bias=self.bias, train=train, dtype=None, names=names, rectified=True
        )


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_that_goes_into_the_kernel_is_the_norm_of_what_was_convolved(bias):
    """With a stride of 2, which a kernel of one pixel takes from the images."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 5, 6, 3))
        net = models.as_net(Convolved(bias), jax.ShapeDtypeStruct((1, *x.shape[1:]), float))
        variables = jax.eval_shape(net.init, jax.random.key(0))
        variables = jax.tree.map(lambda leaf: 0.5 + rng.random(leaf.shape), variables)
        y, _ = net.apply(variables, jnp.asarray(x), train=False)
        conv, scale, stats = *variables.params.values(), variables.batch_stats["norm"]
        out = np.einsum("nhwi,io->nhwo", x[:, ::2, ::2], conv["kernel"][0, 0])
        out = out + conv["bias"] if bias else out
        out = (out - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
        out = np.maximum(out * scale["scale"] + scale["bias"], 0)
        np.testing.assert_allclose(y, out, rtol=1e-12, atol=1e-12)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return layers.BatchNorm(name="norm")(x, train=train)


def test_running_statistics_are_pytorchs():
    """The new value has a weight of 0.1, and its variance is the unbiased one."""
    x = drawn(-1)[0].astype(np.float32)
    net = models.as_net(Normed(), jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32))
    variables = net.init(jax.random.key(0))
    for _ in range(2):
        _, new = net.apply(variables, jnp.asarray(x), train=True)
        variables = variables._replace(batch_stats=new)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["norm"]["mean"], 0.19 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["norm"]["var"], 0.81 + 0.19 * var, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_clones_traced_one_by_one_are_the_stacked_ones(train):
    with jax.enable_x64(True):
        net = models.stack(tiny.classifier(), 3)
        variables = jax.tree.map(lambda x: x.astype(float), net.init(jax.random.key(0)))
        images = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))

        def loss(params):
            logits, batch_stats = net.apply(variables._replace(params=params), images, train=train)
            return (logits**3).sum(), (logits, batch_stats)

        run = functools.partial(jax.value_and_grad(loss, has_aux=True), variables.params)
        stacked = run()
        with backend.pretended("gpu"):
            one_by_one = run()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
            one_by_one,
            stacked,
        )
