"""What a run says of itself and refuses before its first round: sizes, rates, room."""

import math
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from disguide_jax.config import Config
from disguide_jax.core import backend
from disguide_jax.core.types import Learner, TrainState, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import checkpoint, ledger
from disguide_jax.files.ledger import Format
from disguide_jax.run import asked, evaluate, refill
from disguide_jax.run.program import Program, boundaries_of, make_trained, resolve


def describe(program: Program, test_set: evaluate.TestSet, workdir: pathlib.Path) -> str:
    """What the run is about to do."""
    config, template = program.config, program.template
    left_over = config.query_budget - program.queries
    rounds = (
        f"{stage.num_rounds:,} rounds of {stage.queries:,}"
        + (f" ({stage.name})" if len(program.stages) > 1 else "")
        for stage in program.stages
    )
    replay = template.replay
    rows = {
        "method": f"{config.method}, {config.labels} labels, seed {config.seed}",
        "victim": program.about_victim,
        "tested": _tested(config, test_set),
        "clones": f"{config.num_clones} x {config.clones.model}, "
        f"{_count(template.clones, share=config.num_clones)} parameters each",
        "generator": f"{_count(template.generator)} parameters",
        "budget": f"{config.query_budget:,} queries: {', '.join(rounds)}"
        + (f", {left_over:,} left over and not sent" if left_over else ""),
        "rates": _rates(program),
        "replay": f"{len(replay.images):,} images in {config.replay.dtype}, "
        f"{_size(_num_bytes(replay))} on {_device(config)}"
        if program.method.keeps_replay
        else f"none in {config.method}",
        "device": f"{backend.describe()}, "
        + (f"{config.devices} of them, " if config.devices > 1 else "")
        + f"{config.precision}, "
        + f"{config.rounds_per_call} round{'s' * (config.rounds_per_call > 1)} a call",
        "disk": f"at most {_size(_bytes_on_disk(config, template))} of checkpoints"
        + (" and ledger" if config.victim.endpoint else ""),
        "workdir": str(workdir),
    }
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())


def _tested(config: Config, test_set: evaluate.TestSet) -> str:
    """What clones are tested on, and how often the victim is right there."""
    accuracy, num_images = evaluate.victim_accuracy(test_set), evaluate.num_images(test_set)
    if accuracy is None:
        return f"on {num_images:,} random shapes, paid from the budget: fidelity only"
    defended = evaluate.defended_accuracy(test_set)
    behind = "" if defended is None else f", behind its defence {defended:.4f}"
    return f"on {num_images:,} test images of {config.dataset}; victim {accuracy:.4f}{behind}"


def _rates(program: Program) -> str:
    """The learning rates that the last stage begins with, and what becomes of them."""
    config = program.config
    generator, clones = config.generator.learning_rate, config.clones.learning_rate
    if program.method.optimizers:
        return f"generator {generator:g}, clones {clones:g} falling to 0 along a cosine"
    rates = f"generator {generator:g}, clones {clones:g}; "
    if config.schedule.shape == "cosine":
        return rates + "both fall to 0 along a cosine"
    num_rounds = program.stages[-1].num_rounds
    drops = boundaries_of(config, program.stages[-1])
    said = (f"x{scale:.2g} after {at:,} rounds" for at, scale in drops.items() if at < num_rounds)
    return rates + (", ".join(said) or "both stay")


def check_fits(program: Program, workdir: pathlib.Path, *, num_seeds: int = 1) -> None:
    """Refuses a run that the device's memory or the disk cannot hold.

    Args:
      program: of the run.
      workdir: of the run.
      num_seeds: runs like it that are played at once, whose states are first apart and then one.

    Raises:
      UserError: with both numbers.
    """
    needed, replay = _num_bytes(program.template), program.template.replay
    needed *= 2 * num_seeds if num_seeds > 1 else 1
    available = _device_memory()
    if available and needed > available:
        runs = f"{num_seeds} seeds at once need" if num_seeds > 1 else "the run needs"
        said = f"{runs} {_size(needed)} on {_device(program.config)}"
        if not program.method.keeps_replay:
            raise UserError(
                f"{said}; there are {_size(available)}. Choose smaller networks or fewer images."
            )
        pixels = "x".join(map(str, replay.images.shape[1:]))
        raise UserError(
            f"{said}, {_size(_num_bytes(replay))} of it for "
            f"config.replay.size={program.config.replay.size:,} images of {pixels} in "
            f"config.replay.dtype={program.config.replay.dtype}; there are {_size(available)}. "
            "Choose a smaller replay.size, or uint8."
        )
    needed = num_seeds * _bytes_on_disk(program.config, program.template)
    existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    folders = (workdir / "checkpoints", workdir / "ledger")
    held = sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())
    if needed > free + held:
        raise UserError(
            f"checkpoints and ledger in {workdir} need up to {_size(needed)}; {_size(free)} are "
            "free there. Choose another --workdir, a smaller replay.size, or replay.dtype=uint8."
        )


def _count(network: Variables | Learner, share: int = 1) -> str:
    return f"{sum(math.prod(x.shape) for x in jax.tree.leaves(network.params)) // share:,}"


def _device(config: Config) -> str:
    return "each device" if config.devices > 1 else "the device"


def _num_bytes(tree: Any) -> int:
    """Of shapes, on each of the devices that they say they are on."""
    leaves = (x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    shapes = ((x.sharding.shard_shape(x.shape) if x.sharding else x.shape, x.dtype) for x in leaves)
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


def _bytes_on_disk(config: Config, template: TrainState) -> int:
    """Of checkpoints and of the ledger, but for test images."""
    budget, ring = config.query_budget, template.replay
    checkpoints = checkpoint.bytes_on_disk(
        template,
        interval=config.checkpoint_every_queries,
        budget=budget,
        replay_too=not refill.is_needed(config),
    )
    if not config.victim.endpoint:
        return checkpoints
    kept = Format(ring.images.shape[1:], ring.answers.shape[1:], ring.answers.dtype.name)
    return checkpoints + ledger.bytes_on_disk(kept, budget, at_once=config.batch_size)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def _device_memory() -> int | None:
    """Bytes that the device, or on the CPU the machine, can hold; None where nobody says."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if backend.memory_is_shared() and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def say_needs(config: Config) -> str:
    """What a run needs of the machine, known without victim and images."""
    template = make_trained(resolve(config), asked.task_of(asked.describe(config)))[2]
    return (
        f"{_size(_num_bytes(template))} on the device and what its rounds take, "
        f"{_size(_bytes_on_disk(config, template))} of disk"
    )
