"""The DCGAN on a CPU against the same networks as other backends compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disguide_jax import models

COUNT = 2  # networks under `jax.vmap`
NETS = {
    "generator": models.make_generator("dcgan", width=2, latent_dim=7, size=32, channels=3),
    "discriminator": models.make_discriminator(width=2, size=32, channels=3),
}
INPUTS = {"generator": (COUNT * 5, 7), "discriminator": (COUNT * 5, 32, 32, 3)}


def everything(net, x):
    """Initial variables; outputs in both modes, new statistics, gradients of weights and input."""
    start = jax.jit(net.init)(jax.random.key(0))
    variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), start)

    def loss(params, x):
        y, batch_stats = net.apply(variables._replace(params=params), x, train=True)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (jnp.sin(y) * weights).sum(), (y, batch_stats)

    @jax.jit
    def results(x):
        in_eval, _ = net.apply(variables, x, train=False)
        return in_eval, jax.grad(loss, (0, 1), has_aux=True)(variables.params, x)

    return jax.device_get((start, results(x)))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, COUNT])
@pytest.mark.parametrize("name", NETS)
def test_every_layout_gives_the_same_network(name, count, monkeypatch):
    net = models.share(NETS[name], count)
    x = np.random.default_rng(0).normal(size=INPUTS[name])
    found = []
    for last in (True, False):
        monkeypatch.setattr("disguide_jax.core.backend.batch_goes_last", lambda last=last: last)
        with jax.enable_x64():
            found.append(everything(net, x))
    (start, results), (expected_start, expected) = found
    np.testing.assert_equal(start, expected_start)
    for f, e in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert (f.shape, f.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-10 * np.abs(e).max())
