"""What all benchmarks share: taking turns, making what is measured, and room for it."""

import copy
import math
import os
import pathlib
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.config import Config
from disguide_jax.core import backend, replay
from disguide_jax.core.exchange import Kit
from disguide_jax.core.types import Array, TrainState
from disguide_jax.files import checkpoint, datasets
from disguide_jax.run import asked, program
from disguide_jax.settings import get_value, set_value

MIN_TURNS = 3
NUM_SAVES = 3
SHARE_OF_FREE = 0.5  # of memory and disk, that a buffer and the copies of it may take

Row = dict[str, Any]
Say = Callable[[str], None]


def hardware() -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was."""
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu
        )
    return {
        "backend": backend.name(),
        "device_kind": jax.devices()[0].device_kind,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def take_turns(cases: dict[str, Callable[[], object]], seconds: float) -> dict[str, np.ndarray]:
    """Seconds of every turn of each case [turns], after one that compiles and does not count.

    Args:
      cases: each returns the arrays to wait for.
      seconds: cases take turns so long, and `MIN_TURNS` times at least.
    """
    for case in cases.values():
        jax.block_until_ready(case())
    times: dict[str, list[float]] = {name: [] for name in cases}
    stop, turns = time.perf_counter() + seconds, 0
    while turns < MIN_TURNS or time.perf_counter() < stop:
        for name, case in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - start)
        turns += 1
    return {name: np.array(seconds) for name, seconds in times.items()}


def make_row(case: str, seconds: np.ndarray, **more: object) -> Row:
    """One of the results."""
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    times = {"median_seconds": median, "p10_seconds": p10, "p90_seconds": p90}
    return {"case": case, **times, "turns": len(seconds), **more}


def make_kit(config: Config) -> Kit:
    """What is trained in the last stage, in the configured precision, without a victim."""
    task = asked.task_of(datasets.describe(config.dataset, config.data_dir))
    networks = program.make_networks(config, task)
    return program.make_kit(config, task, networks, program.stages_of(config)[-1])


def make_state(kit: Kit, *, size: int) -> TrainState:
    """A fresh state whose replay counts as filled with `size` images."""

    @jax.jit
    def init() -> TrainState:
        state = program.init_state(kit, jax.random.key(kit.config.seed))
        head = jnp.int32(size % len(state.replay.images))
        filled = state.replay.replace(size=jnp.int32(size), head=head)
        return state.replace(replay=filled)

    return init()


def make_batch(kit: Kit) -> tuple[Array, Array]:
    """Random images in [-1, 1] and random answers, as the victim gives them."""
    config, task = kit.config, kit.task
    shape = (config.batch_size, task.size, task.size, task.channels)
    images = jax.random.uniform(jax.random.key(0), shape, minval=-1)
    logits = jax.random.normal(jax.random.key(1), (config.batch_size, task.num_classes))
    return images, jnp.argmax(logits, -1) if config.labels == "hard" else jax.nn.softmax(logits)


def set_key(config: Config, key: str, value: Any) -> Config:
    """The configuration with one key changed; `replay.size` holds a batch at least.

    Raises:
      AttributeError: there is no such key.
    """
    config = copy.deepcopy(config)
    get_value(config, key)  # there is such a key
    set_value(config, key, value)
    config.query_budget = max(config.query_budget, 100 * config.batch_size)
    config.replay.size = max(config.replay.size, config.batch_size)
    return config


def make_insert() -> Callable[[replay.Replay, Array, Array], replay.Replay]:
    """The project's own, in place."""
    return jax.jit(replay.insert, donate_argnums=0)


def make_sample(batch_size: int) -> Callable[[replay.Replay, Array], tuple[Array, Array]]:
    """The project's own, from a buffer and a number that should differ from call to call."""
    return jax.jit(lambda ring, turn: replay.sample(ring, jax.random.key(turn), batch_size))


def replay_bytes(config: Config) -> int:
    """The bytes that the buffer takes."""
    info = datasets.describe(config.dataset, config.data_dir)
    image = info.size**2 * info.channels * jnp.dtype(config.replay.dtype).itemsize
    answer = 4 if config.labels == "hard" else 4 * info.num_classes
    return config.replay.size * (image + answer)


def free_memory() -> float:
    """Bytes that the device, or on the CPU the machine, has left; inf where nobody says."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return math.inf


def fits(num_bytes: int, what: str, say: Say) -> bool:
    """Whether so much memory may be taken; says so if not."""
    free = free_memory()
    if num_bytes <= SHARE_OF_FREE * free:
        return True
    say(
        f"{what} is left out: its replay takes {num_bytes / 1e9:.1f} GB, more than "
        f"{SHARE_OF_FREE:.0%} of the {free / 1e9:.1f} GB that are free"
    )
    return False


def room_for_saves(config: Config) -> bool:
    """Whether memory holds the buffer and what is copied of it, and the disk a few checkpoints."""
    ring = replay_bytes(config)
    increment = ring * min(1, config.checkpoint_every_queries / config.replay.size)
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    return (
        ring + increment <= SHARE_OF_FREE * free_memory()
        and (NUM_SAVES + 2) * increment <= SHARE_OF_FREE * disk
    ) or config.replay.size <= 2 * config.batch_size


def measure_saves(
    state: TrainState, num_new: int, batch: tuple[Array, Array]
) -> list[dict[str, float]]:
    """Checkpoints of a state with `num_new` new images in each, in a temporary directory.

    Returns:
      Of each checkpoint: `stall`, the seconds until training goes on, which is when a batch has
      been inserted into the buffer after `save`; `background`, those until all is on the disk;
      and `bytes` written.
    """
    insert, saves = make_insert(), []
    capacity = len(state.replay.images)
    ring = insert(state.replay, *batch).replace(head=jnp.int32(0), size=jnp.int32(0))
    state = state.replace(replay=ring, round=jnp.int32(0), queries=jnp.int32(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        checkpoint.Checkpoints(pathlib.Path(folder)) as saved,
    ):
        saved.restore(state)
        saved.save(state, {})  # of an empty buffer
        saved.wait()
        for i in range(1, NUM_SAVES + 2):
            ring = state.replay.replace(
                head=jnp.int32(i * num_new % capacity), size=jnp.int32(min(i * num_new, capacity))
            )
            state = state.replace(replay=ring, round=jnp.int32(i), queries=jnp.int32(i * num_new))
            jax.block_until_ready(state)
            start = time.perf_counter()
            saved.save(state, {})
            ring = jax.block_until_ready(insert(ring, *batch))
            going_on = time.perf_counter()
            saved.wait()
            end = time.perf_counter()
            state = state.replace(replay=ring)
            new = [*pathlib.Path(folder).glob(f"replay/{i:09}.*")]
            new += pathlib.Path(folder, f"{i:09}").rglob("*")
            num_bytes = sum(file.stat().st_size for file in new if file.is_file())
            saves.append(
                {"stall": going_on - start, "background": end - going_on, "bytes": num_bytes}
            )
    return saves[1:]  # the first compiles


def peak_memory() -> dict[str, Any]:
    """The most bytes that the device has held or, where it does not say, the process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}
