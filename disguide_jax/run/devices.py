"""The devices of this machine that share a run."""

import jax

from disguide_jax.config import Config
from disguide_jax.core import backend
from disguide_jax.core.exchange import Method
from disguide_jax.errors import UserError


def number(config: Config) -> int:
    """The devices to use; raises UserError where there are not so many."""
    num, there = config.devices, jax.device_count()
    if num > there:
        raise UserError(f"config.devices is {num}; JAX finds {there} here ({backend.describe()})")
    return num or there


def refuse_uneven(config: Config, method: Method) -> None:
    """Raises UserError for devices that cannot share the run evenly."""
    num, there = config.devices, jax.device_count()
    parted = {"batch_size": config.batch_size}
    if method.keeps_replay and not method.learns_from_file:
        parted["replay.size"] = config.replay.size
    for key, value in parted.items():
        if value % num:
            fitting = [n for n in range(1, there + 1) if not any(x % n for x in parted.values())]
            raise UserError(
                f"config.{key} is {value:,}, which {num} devices cannot share evenly; choose a "
                f"multiple of {num}, or config.devices={fitting[-1]}"
            )
