"""Forward differences against NumPy, and what dfme and maze do with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax.config import ClonesConfig, ReplayConfig, ZerothOrderConfig
from disguide_jax.core import zeroth_order
from disguide_jax.errors import UserError
from disguide_jax.options import GeneratorConfig
from disguide_jax.run import program as parts

VICTIM = jax.tree_util.Partial(tiny.smooth_brightness)
GENERATOR = GeneratorConfig(width=2, latent_dim=4, gray_every=0)


def tiny_config(method="dfme", **changes):
    settings = {
        "method": method,
        "labels": "soft",
        "generator": GENERATOR,
        "clones": ClonesConfig(steps=3, learning_rate=0.01),
        "zeroth_order": ZerothOrderConfig(directions=2),
        "query_budget": 10**4,
    }
    return tiny.config(**settings | changes)


def test_directions_have_length_one_and_differ_between_images():
    directions = zeroth_order.draw_directions(jax.random.key(0), 3, (4, 8, 8, 3), jnp.float32)
    lengths = np.linalg.norm(np.asarray(directions).reshape(12, -1), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert len({float(d[0, 0, 0]) for d in directions.reshape(12, 8, 8, 3)}) == 12


def test_forward_differences_are_the_definition():
    rng = np.random.default_rng(0)
    values, directions = rng.normal(size=(3, 4)), rng.normal(size=(2, 4, 5, 5, 3))
    expected = np.zeros((4, 5, 5, 3))
    for n in range(4):
        for i in range(2):
            slope = (values[1 + i, n] - values[0, n]) / 0.1
            expected[n] += 75 * slope * directions[i, n] / 2
    found = zeroth_order.forward_differences(
        jnp.asarray(values), jnp.asarray(directions), epsilon=0.1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_along_every_axis_the_estimate_is_the_gradient():
    """With a whole orthonormal basis the sum over directions is exact, but for the factor d."""
    size = 2 * 2 * 3
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    basis = jnp.eye(size).reshape(size, 1, 2, 2, 3).repeat(2, axis=1)

    def loss(x):
        return jnp.sin(x).sum(axis=(1, 2, 3))

    with jax.enable_x64(True):
        x, basis = x.astype(jnp.float64), basis.astype(jnp.float64)
        values = jnp.stack([loss(x + 1e-6 * u) for u in (0 * basis[0], *basis)])
        found = zeroth_order.forward_differences(values, basis, epsilon=1e-6)
    np.testing.assert_allclose(found, jnp.cos(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clones_train", [True, False])
def test_an_estimate_is_the_definition_for_victim_and_clones(clones_train):
    config = tiny_config(num_clones=2)
    kit, state = tiny.build(config)
    net = kit.networks.clones
    rng = np.random.default_rng(1)
    pre_tanh = rng.normal(size=(3, 32, 32, 3))
    directions = rng.normal(size=(2, 3, 32, 32, 3))
    with jax.enable_x64(True):
        clones = jax.tree.map(lambda x: x.astype(jnp.float64), state.clones)
        variables = clones.variables
        passes = zeroth_order.steps_along(
            jnp.asarray(pre_tanh), jnp.asarray(directions), epsilon=1e-3
        )
        after, estimate = zeroth_order.estimate(
            clones,
            net,
            passes,
            jnp.asarray(directions),
            tiny.smooth_brightness(passes.reshape(9, 32, 32, 3)),
            loss_fn=lambda logits, answers: -kit.answers.loss(logits, answers),
            epsilon=1e-3,
            clones_train=clones_train,
        )

        def loss(images):
            logits, _ = net.apply(variables, jnp.asarray(images), train=clones_train)
            log_p = np.log(tiny.smooth_brightness(jnp.asarray(images)))
            v = log_p - log_p.mean(-1, keepdims=True)
            return -np.abs(np.asarray(logits) - v).mean(axis=(0, 2))

        at = loss(np.tanh(pre_tanh))
        expected = np.zeros_like(pre_tanh)
        for u in directions:
            slopes = (loss(np.tanh(pre_tanh + 1e-3 * u)) - at) / 1e-3
            expected += 3072 * slopes[:, None, None, None] * u / 2
    np.testing.assert_allclose(estimate.losses, at, rtol=1e-9)
    np.testing.assert_allclose(estimate.gradient, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(estimate.images, np.tanh(pre_tanh), rtol=1e-12)
    mean, mean_after = (s.batch_stats["norm"]["mean"] for s in (clones, after))
    assert bool((mean != mean_after).any()) == clones_train


@pytest.mark.parametrize("method", ["dfme", "maze"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "hard"}, "labels is 'hard'; .* needs 'soft', because .* labels do not change"),
        (
            {"replay": ReplayConfig(size=16, dtype="uint8")},
            "replay.dtype is 'uint8'; .* pixels by about 2e-5",
        ),
        (
            {"replay": ReplayConfig(size=16, dtype="bfloat16")},
            "replay.dtype is 'bfloat16'; .* pixels by about 2e-5",
        ),
        ({"query_dtype": "uint8"}, "query_dtype is 'uint8'; .* pixels by about 2e-5"),
        ({"generator": GeneratorConfig(gray_every=8)}, "gray_every is 8"),
    ],
)
def test_what_makes_differences_meaningless_is_refused_with_the_reason(method, change, message):
    with pytest.raises(UserError, match=message):
        parts.method_of(tiny_config(method, **change))


@pytest.mark.parametrize("method", ["dfme", "maze"])
def test_differences_stay_in_float32_in_a_bfloat16_run(method):
    config = tiny_config(method)
    config.clones.model, config.precision = "lenet5_half", "bfloat16"
    networks = parts.make_networks(config, tiny.TASK._replace(channels=1))
    shapes = jax.eval_shape(networks.clones.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    images = jnp.zeros((2, 32, 32, 1))

    def dtypes(clones):
        jaxpr = jax.make_jaxpr(lambda x: clones.apply(variables, x, train=False)[0])(images)
        return str(jaxpr)

    assert "bf16" in dtypes(networks.clones)
    assert "bf16" not in dtypes(networks.exact_clones)
