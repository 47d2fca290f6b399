"""What depends on the kind of device, asked in this one place."""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

OF_MEMORY = (  # environment variables of jaxlib
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
MOST_MEMORY = 0.9  # of a GPU, for all processes; each has a context beside it

_pretended: contextvars.ContextVar[str] = contextvars.ContextVar("pretended", default="")


def loops_are_slow() -> bool:
    """Whether rounds go one by one: a convolution's gradient in a loop is slow on a CPU."""
    return name() == "cpu"


def unrolls(step: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a step that a round repeats is written out each time instead of put into a loop.

    On a CPU a convolution's gradient in a loop is 30 times slower; the matrix products of
    `models.windows` are not. What several devices send each other there may collide, see
    `calls_collide`.
    """
    if name() != "cpu":
        return False
    return jax.device_count() > 1 or _convolves(jax.make_jaxpr(step)(*arguments).jaxpr)


def _convolves(jaxpr: jax.extend.core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(_convolves, jax.extend.core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def seeds_go_together() -> bool:
    """Whether one program should play several seeds; on a CPU one after the other is faster."""
    return name() != "cpu"


def rounds_a_call() -> int:
    """Rounds in one call of a compiled program, which suit this backend."""
    return 1 if loops_are_slow() else 20


def tested_at_once(size: int) -> int:
    """Images of so many pixels in height and width in one batch of an evaluation.

    On a CPU 100 of 32, because 500 are too many for its caches, and as many pixels of others.
    """
    num_pixels = (100 if name() == "cpu" else 500) * 32**2
    return max(1, num_pixels // size**2)


def usual_dtype() -> jnp.dtype:
    """What networks compute in unless they are told: bfloat16 where there are units for it."""
    return jnp.dtype("float32" if name() == "cpu" else "bfloat16")


def fused_transposes_are_slow() -> bool:
    """Whether XLA must be kept from fusing a kernel gradient's transposes with their operands."""
    return name() == "cpu"


def batch_goes_last() -> bool:
    """Whether feature maps of few channels are [channels, H, W, N], for vectors of a CPU."""
    return name() == "cpu"


def sums_need_columns() -> bool:
    """Whether to sum over a batch first, to have as many sums at once as images have numbers.

    XLA fuses more of what is summed with sums that keep all of a GPU busy.
    """
    return name() != "cpu"


def stacks_are_copied() -> bool:
    """Whether to trace networks one by one rather than stacked, whose parts XLA would copy."""
    return name() != "cpu"


def calls_collide() -> bool:
    """Whether collectives that no data puts in order take each other's messages.

    They do between processes on the CPU, which then wait for ever. XLA orders those of one call,
    but not those in a loop or a branch, which it plays beside what does not depend on it.
    """
    return name() == "cpu" and jax.process_count() > 1


def memory_is_shared() -> bool:
    """Whether arrays lie in the machine's own memory."""
    return name() == "cpu"


def memory_of_each(num: int) -> dict[str, str]:
    """Environment variables that let so many processes fit beside each other on one GPU.

    By itself the first would take three quarters of its memory. What a user has set stays, and
    where there is no GPU nothing looks at them.
    """
    if num == 1 or any(variable in os.environ for variable in OF_MEMORY):
        return {}
    return {OF_MEMORY[0]: f"{MOST_MEMORY / num:.3f}"}


def name() -> str:
    """What JAX calls it, or what is pretended."""
    return _pretended.get() or jax.default_backend()


@contextlib.contextmanager
def pretended(name: str) -> Iterator[None]:
    """Makes programs that are traced within suit another backend, to be compiled for it."""
    token = _pretended.set(name)
    try:
        yield
    finally:
        _pretended.reset(token)


def describe() -> str:
    """The device in words."""
    return f"{jax.devices()[0].device_kind} ({name()})"
