"""What a run must compute, counted from shapes, and how long that takes at the very least."""

import functools
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import partial_eval

from disguide_jax import models
from disguide_jax.config import Config, VictimTrainingConfig, validate
from disguide_jax.core import backend, supervised
from disguide_jax.core.types import Array
from disguide_jax.files import datasets
from disguide_jax.run import asked, program
from disguide_jax.victims import network

MATMULS = 4  # in one call


def count_flops(jaxpr: jax.extend.core.Jaxpr) -> Counter[str]:
    """Floating point operations of all convolutions and matrix products, by type.

    Types are bfloat16; tf32, which GPUs take for float32 unless told otherwise; and float32
    where they are told.

    A multiplication and its addition are two. Counted from shapes: bodies of scans as often as
    they run, the costlier branch of a conditional, bodies of while loops once (theirs is not in
    the shapes; no network runs in one), zeros of the padding, but not those that a convolution
    puts between its input's pixels, as the gradients of strides do.
    """
    return sum((_equation_flops(equation) for equation in jaxpr.eqns), Counter())


def _equation_flops(equation: jax.extend.core.JaxprEqn) -> Counter[str]:
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        products = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        outputs = math.prod(_shape(equation.outvars[0]))
        return _of_type(equation, 2 * outputs * products // math.prod(params["lhs_dilation"]))
    if equation.primitive.name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        products = math.prod(_shape(equation.invars[0])[axis] for axis in summed)
        return _of_type(equation, 2 * math.prod(_shape(equation.outvars[0])) * products)
    inner = [count_flops(jaxpr) for jaxpr in jax.extend.core.jaxprs_in_params(params)]
    if equation.primitive.name == "cond":
        return max(inner, key=Counter.total)
    times = params["length"] if equation.primitive.name == "scan" else 1
    return Counter({dtype: times * num for dtype, num in sum(inner, Counter()).items()})


def _of_type(equation: jax.extend.core.JaxprEqn, flops: int) -> Counter[str]:
    dtype = str(_array(equation.invars[0]).dtype)
    told = equation.params["precision"] not in (None, (jax.lax.Precision.DEFAULT,) * 2)
    return Counter({"tf32" if dtype == "float32" and not told else dtype: flops})


def _shape(variable: jax.extend.core.Var | jax.extend.core.Literal) -> tuple[int, ...]:
    return _array(variable).shape


def _array(variable: jax.extend.core.Var | jax.extend.core.Literal) -> jax.core.ShapedArray:
    if not isinstance(variable.aval, jax.core.ShapedArray):
        raise AssertionError(f"{variable} is no array")
    return variable.aval


def flops_of(function: Callable[..., object], *arguments: object) -> int:
    """What one call needs, of all types; the arguments may be shapes."""
    return products_of(function, *arguments).total()


def products_of(function: Callable[..., object], *arguments: object) -> Counter[str]:
    """`count_flops` of what one call needs; the arguments may be shapes."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count_flops(needed)


def extraction_flops(config: Config) -> int:
    """Of all rounds, without evaluations; neither images nor the victim's weights are needed."""
    info = datasets.describe(config.dataset, config.data_dir)
    stages, kits, state = program.make_trained(program.resolve(config), asked.task_of(info))
    net = models.make_classifier(
        config.victim.model,
        width=config.victim.width,
        num_classes=info.num_classes,
        size=info.size,
        channels=info.channels,
    )

    def make_victim() -> network.Victim:
        variables = net.init(jax.random.key(0))
        return network.make_victim(
            net, variables, mean=info.mean, std=info.std, hard_labels=config.labels == "hard"
        )

    oracle = jax.eval_shape(make_victim)
    flops = 0
    for stage in stages:
        play = program.make_play(kits[stage.name], stage)
        flops += stage.num_rounds * flops_of(play, state, oracle)
    return flops


def training_flops(config: VictimTrainingConfig) -> int:
    """Of all updates, without evaluations; the images are not needed."""
    info = datasets.describe(config.dataset, config.data_dir)
    num_images = config.train_images or datasets.num_train_images(config.dataset)
    net = models.make_classifier(
        config.model,
        width=config.width,
        num_classes=info.num_classes,
        size=info.size,
        channels=info.channels,
    )
    steps_per_epoch = num_images // config.batch_size
    tx = supervised.make_optimizer(config, steps_per_epoch)
    state = jax.eval_shape(lambda: supervised.init_state(config, net, tx, num_images))
    size = (num_images, info.size, info.size, info.channels)
    train_set = jax.eval_shape(
        lambda: supervised.Images(jnp.zeros(size, jnp.uint8), jnp.zeros(num_images, jnp.int32))
    )
    train_step = supervised.make_train_step(config, net, tx, asked.task_of(info))
    return config.epochs * steps_per_epoch * flops_of(train_step, state, train_set)


def make_matmul(dtype: jnp.dtype) -> tuple[Callable[[], Array], int]:
    """A call that multiplies large square matrices, one after the other, and its FLOPs."""
    size = 1024 if backend.loops_are_slow() else 8192  # enough for its best speed
    a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))

    @jax.jit
    def products(a: Array, b: Array) -> Array:
        for _ in range(MATMULS):
            a = a @ b
        return a

    return lambda: products(a, b), MATMULS * 2 * size**3


def matmul_speed(precision: str) -> float:
    """The FLOPs a second that this machine reaches in matrix products: the best of five tries."""
    multiply, flops = make_matmul(program.compute_dtype(precision) or jnp.dtype(jnp.float32))
    jax.block_until_ready(multiply())  # compiles
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(multiply())
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds)


@functools.cache
def matmul_speed_apart(precision: str) -> float:
    """The same by a process of its own, for JAX keeps most of a GPU's memory until it ends."""
    code = f"from disguide_jax.study import flops; print(flops.matmul_speed({precision!r}))"
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def least_hours(flops: int, precision: str) -> float:
    """What so much would take if all of it went as fast as matrix products."""
    return flops / matmul_speed_apart(precision) / 3600


def least_extraction_hours(config: Config) -> float:
    """The same of a whole extraction.

    Raises:
      UserError: the configuration cannot be run.
    """
    validate(config)
    return least_hours(extraction_flops(config), config.precision)
