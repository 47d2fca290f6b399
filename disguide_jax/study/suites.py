"""What benchmarks there are and what they measure when they are not told; it needs no JAX."""

import os

from disguide_jax import shipped

SUITES = ("clone_step", "round", "replay", "checkpoint", "endpoint", "seeds", "plan")
NARROW = (
    "--config.victim.weights=random",
    "--config.victim.width=16",
    "--config.clones.width=16",
    "--config.generator.width=16",
    "--config.batch_size=64",
    "--config.replay.size=100000",
)
SWEEP = [
    "batch_size=64,128,256,512,1024",
    "num_clones=2,4,8",
    "replay.size=50000,250000,1000000",
    "replay.batches=1,2,3,4,5",
]
SIZES = ["50000", "250000", "1000000"]
GOAL = 11_500.0  # queries/s


def default_config() -> tuple[str, ...]:
    """The arguments that name what is measured when nothing is named."""
    from disguide_jax.core import backend  # which is JAX

    full = f"--config={os.path.relpath(shipped.CONFIGS / 'c10_soft.py')}"
    return (full, *NARROW) if backend.loops_are_slow() else (full,)
