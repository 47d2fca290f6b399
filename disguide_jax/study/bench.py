"""Benchmarks: the suites, and those of clone steps, the replay and checkpoints."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax import models
from disguide_jax.config import Config, to_dict, validate
from disguide_jax.core import learn, pixels, replay
from disguide_jax.core.exchange import Kit
from disguide_jax.core.types import Array, Learner, Metrics, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import atomic
from disguide_jax.files.workdir import provenance
from disguide_jax.models import conv
from disguide_jax.run import program
from disguide_jax.study import flops, measure, plan, seed_bench
from disguide_jax.study.measure import Row, Say
from disguide_jax.study.rounds import bench_round

CloneStep = Callable[[Learner, Array, Array], tuple[Learner, Metrics]]


def bench(
    config: Config,
    suite: str,
    path: pathlib.Path,
    *,
    command: str,
    seconds: float,
    vary: Sequence[str],
    sizes: Sequence[str],
    queries_per_second: float,
    gpu: Sequence[str],
) -> None:
    """Runs a suite, printing its results and writing them as they come.

    Args:
      config: what is measured.
      suite: of SUITES.
      path: of the JSON file that is written.
      command: that is noted there.
      seconds: cases take turns so long.
      vary: round: "KEY=VALUE,VALUE,..." each.
      sizes: replay, checkpoint (the largest): of the buffer.
      queries_per_second: checkpoint: of the training.
      gpu: plan: names of GPUS.

    Raises:
      UserError: a mistake in one of these.
    """
    validate(config)
    program.stages_of(config)
    if config.seeds and suite != "seeds":
        raise UserError(f"config.seeds is {config.seeds}; suite {suite} measures one run")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from error

    report = {
        "hardware": measure.hardware(),
        "config": to_dict(config),
        **provenance(),
        "command": command,
        "notes": [],
        "results": [],
    }

    def say(note: str) -> None:
        print(f"({note})", flush=True)
        report["notes"].append(note)

    suites = {
        "clone_step": lambda: bench_clone_step(config, seconds),
        "round": lambda: bench_round(config, seconds, vary, say),
        "replay": lambda: bench_replay(config, seconds, whole(sizes), say),
        "checkpoint": lambda: bench_checkpoint(config, max(whole(sizes)), queries_per_second, say),
        "endpoint": lambda: bench_endpoint(config, seconds),
        "seeds": lambda: seed_bench.bench_seeds(config, seconds),
        "plan": lambda: plan.bench_plan(config, gpu, say),
    }
    print(", ".join(f"{k} {v}" for k, v in report["hardware"].items()))
    if suite != "plan":
        print(f"{'case':<32} {'median':>12} {'p10':>12} {'p90':>12}")
    show = plan.format_row if suite == "plan" else format_row
    for row in suites[suite]():
        print(show(row), flush=True)
        report["results"].append(row)
        atomic.write_json(path, report)  # each time: a suite may take long
    atomic.write_json(path, report)  # with the last note


def bench_endpoint(config: Config, seconds: float) -> Iterator[Row]:
    """Rounds against the same victim inside JAX, as a function, a file and a service.

    Raises:
      UserError: what this needs is not installed.
    """
    try:
        from disguide_jax.study import endpoints
    except ImportError as error:
        raise UserError("this needs `pip install 'disguide_jax[onnx,serve]'`") from error
    return endpoints.bench_endpoints(config, seconds)


def whole(numbers: Sequence[str]) -> list[int]:
    """Whole numbers above 0.

    Raises:
      UserError: one of them is not.
    """
    for number in numbers:
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--sizes: {number!r} must be a whole number above 0")
    if not numbers:
        raise UserError("--sizes is empty")
    return [int(number) for number in numbers]


def format_row(row: Row) -> str:
    """One line: the case, its seconds in ms, and whatever else is known of it."""
    columns = ("median_seconds", "p10_seconds", "p90_seconds")
    times = (f"{1e3 * row[name]:>9.3f} ms" for name in columns)
    more = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in ("case", "turns", *columns)
    )
    return f"{row['case']:<32} {' '.join(times)}   {', '.join(more)}"


def bench_clone_step(config: Config, seconds: float) -> Iterator[Row]:
    """One training step of all clones on the same batch, in three ways."""
    kit = measure.make_kit(config)
    batch = measure.make_batch(kit)
    clone_steps = make_clone_steps(kit)
    num_flops = {
        name: flops.flops_of(step, state, *batch) for name, (step, state) in clone_steps.items()
    }

    def make_case(step: CloneStep, state: Learner) -> Callable[[], object]:
        def case() -> Metrics:
            nonlocal state
            state, metrics = step(state, *batch)
            return metrics

        return case

    times = measure.take_turns(
        {name: make_case(*step_and_state) for name, step_and_state in clone_steps.items()}, seconds
    )
    medians = {name: float(np.median(turns)) for name, turns in times.items()}
    for name, turns in times.items():
        yield measure.make_row(
            name,
            turns,
            ratio_to_separate=medians[name] / medians["clones_separate"],
            flops=num_flops[name],
            flops_per_second=num_flops[name] / medians[name],
        )


def make_clone_steps(kit: Kit) -> dict[str, tuple[CloneStep, Learner]]:
    """Compiled steps (clones, images, answers) -> (clones, metrics), each with its clones.

    All begin with the same weights. `clones_vmapped` is what the program trains.
    """
    config, task = kit.config, kit.task
    clone = models.make_classifier(
        config.clones.model,
        width=config.clones.width,
        num_classes=task.num_classes,
        size=task.size,
        channels=task.channels,
        dtype=program.compute_dtype(config.precision),
    )
    nets = {
        "clones_vmapped": kit.networks.clones,
        "clones_separate": separate(clone, config.num_clones),
        "clones_grouped": grouped(kit.networks.clones),
    }

    def make_step(net: Net) -> tuple[CloneStep, Learner]:
        @jax.jit
        def init() -> Learner:
            return learn.start(net.init(jax.random.key(config.seed)), kit.tx.clones)

        def step(clones: Learner, images: Array, answers: Array) -> tuple[Learner, Metrics]:
            return learn.teach(clones, net, kit.tx.clones, kit.answers.loss, images, answers)

        return jax.jit(step, donate_argnames="clones"), init()

    return {name: make_step(net) for name, net in nets.items()}


def separate(net: Net, num: int) -> Net:
    """Networks that are called one after the other; their variables are tuples."""

    def init(key: Array) -> Variables:
        stacked = models.stack(net, num).init(key)
        single = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(num)]
        return Variables(*map(tuple, zip(*single, strict=True)))

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        single = map(Variables, variables.params, variables.batch_stats)
        outs, batch_stats = zip(*(net.apply(v, x, train=train) for v in single), strict=True)
        return jnp.stack(outs), batch_stats

    return Net(init, apply)


def grouped(clones: Net) -> Net:
    """The same stacked clones with JAX's own convolution, which vmap turns into a grouped one."""

    def apply(variables: Variables, x: Array, *, train: bool) -> tuple[Array, Any]:
        with conv.left_to_jax():
            return clones.apply(variables, x, train=train)

    return clones._replace(apply=apply)


def bench_replay(config: Config, seconds: float, sizes: list[int], say: Say) -> Iterator[Row]:
    """Inserting and sampling a batch, and what drawing it by a permutation would take."""
    for dtype in ("uint8", "float32"):
        for size in sizes:
            sized = measure.set_key(config, "replay.size", size)
            sized.replay.dtype = dtype
            name = f"{dtype}/{sized.replay.size}"
            if measure.fits(measure.replay_bytes(sized), name, say):
                for case, turns in measure.take_turns(replay_cases(sized), seconds).items():
                    yield measure.make_row(f"{case}/{name}", turns, batch_size=config.batch_size)


def replay_cases(config: Config) -> dict[str, Callable[[], object]]:
    """What is done to a full buffer, and a baseline."""
    images, answers = measure.make_batch(measure.make_kit(config))
    stored = jax.ShapeDtypeStruct(images.shape, jnp.dtype(config.replay.dtype))
    ring = jax.jit(lambda: replay.init(config.replay.size, stored, answers))()
    ring = ring.replace(size=jnp.int32(config.replay.size))
    insert, sample = measure.make_insert(), measure.make_sample(config.batch_size)

    def insert_batch() -> Array:
        nonlocal ring
        ring = insert(ring, images, answers)
        return ring.head

    @jax.jit
    def permute(ring: replay.Replay, turn: Array) -> tuple[Array, Array]:
        slots = jax.random.permutation(jax.random.key(turn), len(ring.images))
        slots = slots[: config.batch_size]
        return pixels.decode(ring.images[slots]), ring.answers[slots]

    return {
        "insert": insert_batch,
        "sample": lambda: sample(ring, ring.head),
        "permutation": lambda: permute(ring, ring.head),
    }


def bench_checkpoint(config: Config, size: int, rate: float, say: Say) -> Iterator[Row]:
    """What checkpoints cost a training of `rate` queries a second with a replay of `size`.

    Where memory or disk do not hold it a smaller one is measured. The bytes of a checkpoint grow
    with it, and so, but for what networks and optimisers take, do its seconds: both are given as
    measured, and scaled.
    """
    interval = config.checkpoint_every_queries
    for dtype in ("uint8", "float32"):
        asked = measure.set_key(config, "replay.size", size)
        asked.replay.dtype = dtype
        scale = 1
        while not measure.room_for_saves(measured := scaled_down(asked, scale)):
            scale *= 2
        if scale > 1:
            say(f"{dtype}: measured with 1/{scale} of the images, for want of memory or disk")
        kit = measure.make_kit(measured)
        state = measure.make_state(kit, size=0)
        num_saved = min(measured.checkpoint_every_queries, measured.replay.size)
        saves = measure.measure_saves(state, num_saved, measure.make_batch(kit))
        del state
        stall, background, num_bytes = (
            np.array([save[key] for save in saves]) for key in ("stall", "background", "bytes")
        )
        between = interval / rate
        yield measure.make_row(
            f"checkpoint/{dtype}/{size}",
            stall,
            background_seconds=float(np.median(background)),
            bytes_written=int(np.median(num_bytes)),
            images=measured.replay.size,
            images_written=num_saved,
            scaled_images=asked.replay.size,
            scaled_seconds=float(np.median(stall)) * scale,
            scaled_background_seconds=float(np.median(background)) * scale,
            seconds_between_checkpoints=between,
            share_of_training=float(np.median(stall)) * scale / between,
        )


def scaled_down(config: Config, scale: int) -> Config:
    """The same with a fraction of the replay, and checkpoints as much more often."""
    config = measure.set_key(config, "replay.size", config.replay.size // scale)
    config.checkpoint_every_queries = max(1, config.checkpoint_every_queries // scale)
    return config
