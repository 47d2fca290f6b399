"""What depends on the kind of device, asked in this one place."""

import jax
import jax.numpy as jnp


def loops_are_slow() -> bool:
    """Whether to unroll: a convolution's gradient in a loop is 30 times slower on a CPU."""
    return name() == "cpu"


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


def memory_is_shared() -> bool:
    """Whether arrays lie in the machine's own memory."""
    return name() == "cpu"


def name() -> str:
    """What JAX calls it."""
    return jax.default_backend()


def describe() -> str:
    """The device in words."""
    return f"{jax.devices()[0].device_kind} ({name()})"
