"""What is counted of a computation, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from disguide_jax import shipped
from disguide_jax.study import flops
from disguide_jax.study.results import Cell


def conv(x, k, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        k,
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


X = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
K = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
W = jax.ShapeDtypeStruct((4 * 4 * 5, 7), jnp.float32)
CONV = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)  # of stride 2: each output is a sum of 27 products
DENSE = 2 * (2 * 7) * 80


def network(x, k, w):
    return jnp.tanh(conv(x, k, stride=2)).reshape(2, -1) @ w


def test_flops_of_a_small_network_are_those_counted_by_hand():
    assert flops.flops_of(network, X, K, W) == CONV + DENSE == 8640 + 2240


def test_flops_of_gradients_count_each_operand_that_is_asked_for():
    def gradient(*argnums):
        return jax.grad(lambda *args: network(*args).sum(), argnums)

    # The output's gradient is asked for by none; that of the dense layer's input by k and x.
    assert flops.flops_of(gradient(0, 1, 2), X, K, W) == 3 * CONV + 3 * DENSE - DENSE
    assert flops.flops_of(gradient(1), X, K, W) == 2 * CONV + DENSE


def test_flops_in_loops_branches_calls_and_groups():
    def scanned(x, k, w):
        def body(carry, _):
            return carry + network(x, k, w).sum(), None

        return jax.lax.scan(body, 0.0, length=6)[0]

    assert flops.flops_of(scanned, X, K, W) == 6 * (CONV + DENSE)

    def branching(x, k, w):
        return jax.lax.cond(x.sum() > 0, lambda: network(x, k, w), lambda: jnp.zeros((2, 7)))

    assert flops.flops_of(jax.jit(branching), X, K, W) == CONV + DENSE
    assert flops.flops_of(jax.vmap(network, (0, None, None)), batched(X, 3), K, W) == 3 * (
        CONV + DENSE
    )
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    k = jax.ShapeDtypeStruct((3, 3, 2, 6), jnp.float32)
    grouped = flops.flops_of(lambda x, k: conv(x, k, groups=2), x, k)
    assert grouped == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


def batched(x, num):
    return jax.ShapeDtypeStruct((num, *x.shape), x.dtype)


def test_what_nobody_asks_for_is_not_counted():
    assert flops.flops_of(lambda x, k, w: (network(x, k, w), x.sum())[1], X, K, W) == 0


@pytest.mark.slow
def test_an_extraction_costs_what_its_header_says(monkeypatch):
    """8.8 TFLOP a round of 256, 78,125 of them, in configs/c10_soft.py: on a GPU.

    A CPU's generator needs fewer products.
    """
    monkeypatch.setattr("disguide_jax.core.backend.batch_goes_last", lambda: False)
    config = Cell("full", "c10_soft").load(0)
    config.query_budget = 1_000 * 256 + 255
    assert flops.extraction_flops(config) == pytest.approx(1_000 * 8.8e12, rel=0.01)


def test_a_training_costs_what_its_header_says():
    config = shipped.load("victim_c10_r34")
    assert flops.training_flops(config) == pytest.approx(8.4e16, rel=0.01)


@pytest.mark.slow
def test_all_stages_of_dfms_are_counted():
    config = Cell("digits", "digits_dfms:smoke").load(0)
    whole = flops.extraction_flops(config)
    config.dfms.gan_epochs = 0
    assert 0 < flops.extraction_flops(config) < whole


def test_least_hours_are_those_of_matrix_products(monkeypatch):
    monkeypatch.setattr(flops, "matmul_speed_apart", {"float32": 1e9}.get)
    assert flops.least_hours(7_200 * 10**9, "float32") == 2.0


def test_the_speed_is_measured_without_this_process_touching_the_device(monkeypatch):
    monkeypatch.setattr(flops, "make_matmul", None)
    assert 1e8 < flops.matmul_speed_apart("float32") < 1e16
