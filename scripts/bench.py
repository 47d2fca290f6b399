"""Measures how fast the program is on this machine, and how its costs grow.

usage: python scripts/bench.py --suite {clone_step,round,replay,checkpoint} --json OUT
           [--config configs/NAME.py[:variant]] [--config.key=value ...] [--sweep]

clone_step  a training step of all clones: as the program takes it, network by network, and with
            the grouped convolutions that jax.vmap makes by itself
round       a round and its parts, its FLOPs against a measured matmul peak, memory, compile
            times; with --sweep also how a round's time grows with keys of the configuration.
            Parts are compiled apart, so that their shares need not add up to one; that of the
            host is beside the device, not before it
replay      inserting and sampling in large buffers, against a permutation of the whole buffer
checkpoint  what training loses to the checkpoints of a large buffer

Cases take turns, so that whatever else the machine does hits all of them alike. Without --config
it is configs/c10_soft.py, on a CPU with narrow networks, batches of 64 and a smaller replay.
"""

import copy
import math
import os
import pathlib
import platform
import resource
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from disguide_jax import (
    checkpoint,
    cli,
    cost,
    data,
    evaluate,
    models,
    plan,
    replay,
    steps,
    train,
    updates,
    victim,
    writers,
)
from disguide_jax.config import RANDOM_WEIGHTS, Config, validate
from disguide_jax.errors import UserError
from disguide_jax.methods import disguide
from disguide_jax.models import layers
from disguide_jax.state import Array, Net, Networks, Optimizers, TrainState, Variables

SUITES = ("clone_step", "round", "replay", "checkpoint")
ROOT = pathlib.Path(__file__).parents[1]
FULL = (f"--config={os.path.relpath(ROOT / 'configs/c10_soft.py')}",)
NARROW = (
    *FULL,
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
MIN_TURNS = 3
NUM_SAVES = 3
GOAL = 11_500.0  # queries/s
SHARE_OF_FREE = 0.5  # of memory and disk, that a buffer and the copies of it may take
NUM_NOISE, NOISE_BATCH = 10_000, 500  # test images where they are noise, as many as CIFAR has

Row = dict[str, Any]
Say = Callable[[str], None]


def main(values: flags.FlagValues, config: Config) -> int:
    """Runs the suite that the command line names; returns the exit status."""
    for flag in ("suite", "json"):
        if not values[flag].value:
            raise UserError(f"--{flag} is missing\n\n{__doc__.strip()}")
    validate(config)
    steps.stages(config)
    path = pathlib.Path(values.json)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from error

    report = {
        "hardware": hardware(),
        **plan.provenance(config),
        "command": shlex.join(["python", "scripts/bench.py", *sys.argv[1:]]),
        "notes": [],
        "results": [],
    }

    def say(note: str) -> None:
        print(f"({note})", flush=True)
        report["notes"].append(note)

    suites = {
        "clone_step": lambda: bench_clone_step(config, values.seconds),
        "round": lambda: bench_round(
            config, values.seconds, values.vary if values.sweep else [], say
        ),
        "replay": lambda: bench_replay(config, values.seconds, whole(values.sizes), say),
        "checkpoint": lambda: bench_checkpoint(
            config, max(whole(values.sizes)), values.queries_per_second, say
        ),
    }
    print(", ".join(f"{k} {v}" for k, v in report["hardware"].items()))
    print(f"{'case':<32} {'median':>12} {'p10':>12} {'p90':>12}")
    for row in suites[values.suite]():
        print(format_row(row), flush=True)
        report["results"].append(row)
        writers.write_json(path, report)  # each time: a suite may take long
    writers.write_json(path, report)  # with the last note
    return 0


def hardware() -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was."""
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu
        )
    return {
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "cpu": cpu,
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


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


def take_turns(cases: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
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


def make_row(case: str, seconds: Any, **more: Any) -> Row:
    """One of the results."""
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    times = {"median_seconds": median, "p10_seconds": p10, "p90_seconds": p90}
    return {"case": case, **times, "turns": len(seconds), **more}


def make_networks(config: Config) -> tuple[Networks, Optimizers, data.Info]:
    """What is trained, in the configured precision, without a victim or images."""
    info = data.describe(config.dataset, config.data_dir)
    dtype = plan.compute_dtype(config.precision)
    networks = steps.make_networks(
        config,
        num_classes=info.num_classes,
        channels=info.channels,
        dtype=None if dtype == jnp.float32 else dtype,
    )
    return networks, steps.make_optimizers(config), info


def make_state(
    config: Config, networks: Networks, tx: Optimizers, info: data.Info, *, size: int
) -> TrainState:
    """A fresh state whose replay counts as filled with `size` images."""

    @jax.jit
    def init() -> TrainState:
        state = steps.init_state(
            config, networks, tx, num_classes=info.num_classes, channels=info.channels
        )
        head = jnp.int32(size % len(state.replay.images))
        filled = state.replay.replace(size=jnp.int32(size), head=head)
        return state.replace(replay=filled)

    return init()


def make_batch(config: Config, info: data.Info) -> tuple[Array, Array]:
    """Random images in [-1, 1] and random answers, as the victim gives them."""
    shape = (config.batch_size, models.IMAGE_SIZE, models.IMAGE_SIZE, info.channels)
    images = jax.random.uniform(jax.random.key(0), shape, minval=-1)
    logits = jax.random.normal(jax.random.key(1), (config.batch_size, info.num_classes))
    return images, jnp.argmax(logits, -1) if config.labels == "hard" else jax.nn.softmax(logits)


# clone_step


def bench_clone_step(config: Config, seconds: float) -> Iterator[Row]:
    """One training step of all clones on the same batch, in three ways."""
    _, _, info = make_networks(config)
    batch = make_batch(config, info)
    clone_steps = make_clone_steps(config)
    flops = {
        name: cost.flops_of(step, state, *batch) for name, (step, state) in clone_steps.items()
    }

    def make_case(step: Callable, state: TrainState) -> Callable[[], Any]:
        def case() -> Any:
            nonlocal state
            state, metrics = step(state, *batch)
            return metrics

        return case

    times = take_turns(
        {name: make_case(*step_and_state) for name, step_and_state in clone_steps.items()}, seconds
    )
    medians = {name: float(np.median(turns)) for name, turns in times.items()}
    for name, turns in times.items():
        yield make_row(
            name,
            turns,
            ratio_to_separate=medians[name] / medians["clones_separate"],
            flops=flops[name],
            flops_per_second=flops[name] / medians[name],
        )


def make_clone_steps(config: Config) -> dict[str, tuple[Callable, TrainState]]:
    """Compiled steps (state, images, answers) -> (state, metrics), each with its state.

    All begin with the same weights. `clones_vmapped` is what the program trains.
    """
    networks, tx, info = make_networks(config)
    dtype = plan.compute_dtype(config.precision)
    clone = models.make_classifier(
        config.clones.model,
        width=config.clones.width,
        num_classes=info.num_classes,
        channels=info.channels,
        dtype=None if dtype == jnp.float32 else dtype,
    )
    clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)
    nets = {
        "clones_vmapped": networks.clones,
        "clones_separate": separate(clone, config.num_clones),
        "clones_grouped": grouped(networks.clones),
    }

    def make_step(net: Net) -> tuple[Callable, TrainState]:
        @jax.jit
        def init() -> TrainState:
            clones = net.init(jax.random.key(config.seed))
            absent = dict.fromkeys(
                ("round", "queries", "answered", "key", "generator", "generator_opt", "replay")
            )
            return TrainState(clones=clones, clones_opt=tx.clones.init(clones.params), **absent)

        def step(state: TrainState, images: Array, answers: Array) -> tuple[TrainState, Any]:
            return updates.update_clones(state, net, tx.clones, clone_loss, images, answers)

        return jax.jit(step, donate_argnames="state"), init()

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
        with mock.patch.object(layers, "conv_general_dilated", jax.lax.conv_general_dilated):
            return clones.apply(variables, x, train=train)

    return clones._replace(apply=apply)


# round


def bench_round(config: Config, seconds: float, vary: Sequence[str], say: Say) -> Iterator[Row]:
    """A round, its parts and, where keys are to `vary`, how it grows with them."""
    variations = [variation for text in vary for variation in parse_variations(config, text)]
    config = without_files(config, say)
    run = plan.build(config)
    call, compiling = compile_round(run)
    playing = Playing(run, call)
    playing.play()
    memory = peak_memory()
    matmul, matmul_flops = cost.make_matmul(run.dtype)
    cases = {"round": playing.play, "matmul": matmul}
    if config.method == "disguide":
        cases |= playing.parts()
    else:
        say("the parts of a round are measured for disguide only")
    cases["evaluation"] = playing.evaluate
    times = take_turns(cases, seconds)

    every = train.event_intervals(config, run.stages[-1])
    num_tested = evaluate.num_images(playing.test_set)
    num_test = NUM_NOISE if config.dataset.startswith("noise") else num_tested
    num_saved = min(config.checkpoint_every_queries, len(playing.state.replay.images))
    times["round"] /= rounds_in_call(run)
    times["host"] = np.array(playing.host_seconds) / rounds_in_call(run)
    times["evaluation"] *= num_test / num_tested / every["evaluate"]
    saves = measure_saves(playing.state, num_saved, make_batch(config, playing.info))
    times["checkpoint"] = np.array([save["stall"] for save in saves]) / every["checkpoint"]

    medians = {name: float(np.median(turns)) for name, turns in times.items()}
    total = medians["round"] + medians["evaluation"] + medians["checkpoint"]
    flops = cost.flops_of(make_step(run), run.template, run.victim)
    peak = matmul_flops / float(times["matmul"].min())
    sent = run.stages[-1].queries_per_round
    more = {
        "round": {
            "queries_per_second": sent / medians["round"],
            "queries_per_second_overall": sent / total,  # with evaluations and checkpoints
            "flops": flops,
            "flops_per_second": flops / medians["round"],
            "share_of_matmul_peak": flops / medians["round"] / peak,
            "compute_dtype": run.dtype.name,
            "rounds_per_call": run.rounds_per_call,
            **compiling,
            **memory,
        },
        "matmul": {"flops_per_second": peak},
        "evaluation": {"every_rounds": every["evaluate"], "images": num_test},
        "checkpoint": {"every_rounds": every["checkpoint"], "images": num_saved},
    }
    for name, turns in times.items():
        share = {} if name == "matmul" else {"share": medians[name] / total}
        yield make_row(name, turns, **share, **more.get(name, {}))

    del playing, cases
    for key, value in variations:
        varied = set_key(config, key, value)
        if fits(replay_bytes(varied), f"{key}={value}", say):
            yield bench_variation(run, varied, seconds, key=key, value=value)


def without_files(config: Config, say: Say) -> Config:
    """The same with random weights where there are none, and noise to test on.

    Neither changes what a round costs.
    """
    config = copy.deepcopy(config)
    if config.victim.weights != RANDOM_WEIGHTS:
        try:
            victim.weights_path(config.victim)
        except UserError:
            say(f"there is no {config.victim.weights}")
            config.victim.weights = RANDOM_WEIGHTS
    if config.victim.weights == RANDOM_WEIGHTS:
        say(f"the weights of the victim, a {config.victim.model}, are random")
    if config.dataset.startswith("cifar"):
        say(f"{NUM_NOISE:,} images of noise instead of those of {config.dataset}")
        config.dataset = config.dataset.replace("cifar", "noise")
    return config


class Playing:
    """A run with a full replay; calls that donate the state put back what they return."""

    def __init__(self, run: plan.Run, call: Callable):
        config, self._run, self._call = run.config, run, call
        self.info = data.describe(config.dataset, config.data_dir)
        self.state = make_state(
            config, run.networks, run.tx, self.info, size=len(run.template.replay.images)
        )
        self.test_set = run.test_set
        if config.dataset.startswith("noise"):
            repeats = NOISE_BATCH // evaluate.num_images(run.test_set)
            self.test_set = jax.tree.map(
                lambda x: jnp.concatenate([x] * repeats, axis=1), run.test_set
            )
        self.host_seconds: list[float] = []  # of each call
        self._score = evaluate.make_evaluate(run.networks.clones, run.victim)

    def play(self) -> TrainState:
        """One call of the compiled step, and what the host does before and after."""
        start = time.perf_counter()
        num_rounds = rounds_in_call(self._run)
        self.state, *returned = self._call(self.state, self._run.victim, num_rounds)
        sent = time.perf_counter()
        jax.block_until_ready(self.state)
        back = time.perf_counter()
        train.absorb(train.Progress(), 0, returned)
        self.host_seconds.append(sent - start + time.perf_counter() - back)
        return self.state

    def evaluate(self) -> evaluate.Scores:
        """All clones on the test set."""
        return self._score(self.state.clones, self.test_set)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """What makes up a round of disguide, in pieces that are compiled one by one."""
        config, networks, tx = self._run.config, self._run.networks, self._run.tx
        clone_loss = updates.make_clone_loss(config.clones, labels=config.labels)
        images, answers = make_batch(config, self.info)
        ring = self.state.replay
        one_image = ring.replace(images=ring.images[:1], answers=ring.answers[:1])
        state = jax.tree.map(jnp.copy, self.state.replace(replay=one_image))

        @jax.jit
        def generator_step(state: TrainState) -> tuple[TrainState, Array]:
            """The update, and the images that will be sent."""
            key = updates.round_key(state, disguide.GENERATOR)
            z, gray_channel = updates.draw_latent(
                key, config.batch_size, config.generator.latent_dim, self.info.channels
            )
            state, _ = disguide.update_generator(
                state, networks, tx, z, gray_channel, config=config
            )
            images, _ = updates.generate(
                networks.generator,
                state.generator,
                z,
                gray_channel,
                gray_every=config.generator.gray_every,
                train=False,
            )
            return state, images

        @jax.jit
        def ask(oracle: victim.Victim, images: Array) -> Array:
            return oracle(images)

        @jax.jit
        def clone_step(state: TrainState, images: Array, answers: Array) -> TrainState:
            return updates.update_clones(
                state, networks.clones, tx.clones, clone_loss, images, answers
            )[0]

        def clone_steps() -> TrainState:
            updated = state
            for _ in range(1 + config.replay.batches):
                updated = clone_step(updated, images, answers)
            return updated

        insert, sample = make_insert(), make_sample(config.batch_size)

        def use_replay() -> Any:
            ring = insert(self.state.replay, images, answers)
            self.state = self.state.replace(replay=ring)
            return [sample(ring, ring.head + i) for i in range(config.replay.batches)]

        return {
            "generator_step": lambda: generator_step(state),
            "victim": lambda: ask(self._run.victim, images),
            "clone_steps": clone_steps,
            "replay": use_replay,
        }


def make_call(run: plan.Run) -> Callable:
    """(state, victim, num_rounds) -> (state, metric sums, rounds played), as the program does."""
    return steps.make_train_call(make_step(run), looped=run.rounds_per_call > 0)


def rounds_in_call(run: plan.Run) -> int:
    """At least one."""
    return run.rounds_per_call or 1


def make_step(run: plan.Run) -> steps.TrainStep:
    """One round of the run's last stage."""
    return steps.make_train_step(
        run.config, run.networks, run.tx, channels=run.victim_model.channels
    )


def compile_round(run: plan.Run) -> tuple[Callable, dict[str, float]]:
    """The compiled call, and the seconds that tracing and compiling it take.

    Once with an empty persistent cache, and once with what that has left there.
    """
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for key, value in zip(keys, (folder, 0), strict=True):
                jax.config.update(key, value)
            compilation_cache.reset_cache()
            for name in ("compile_cold_seconds", "compile_warm_seconds"):
                start = time.perf_counter()
                lowered = make_call(run).lower(run.template, run.victim, rounds_in_call(run))
                call = lowered.compile()
                seconds[name] = time.perf_counter() - start
        finally:
            for key, value in before.items():
                jax.config.update(key, value)
            compilation_cache.reset_cache()
    return call, seconds


def peak_memory() -> dict[str, Any]:
    """The most bytes that the device has held or, where it does not say, the process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


def parse_variations(config: Config, text: str) -> list[tuple[str, int]]:
    """KEY=VALUE,VALUE,... as pairs of key and value.

    Raises:
      UserError: the values are not numbers, or the configuration cannot have them.
    """
    key, _, values = text.partition("=")
    try:
        pairs = [(key, int(value)) for value in values.split(",")]
        for pair in pairs:
            validate(set_key(config, *pair))
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"--vary: {text!r} must be KEY=VALUE,VALUE,... with a key of the configuration and "
            "whole numbers"
        ) from error
    return pairs


def set_key(config: Config, key: str, value: Any) -> Config:
    """The configuration with one key changed; `replay.size` holds a batch at least.

    Raises:
      AttributeError: there is no such key.
    """
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    place = config
    for part in path:
        place = getattr(place, part)
    getattr(place, last)
    setattr(place, last, value)
    config.query_budget = max(config.query_budget, 100 * config.batch_size)
    config.replay.size = max(config.replay.size, config.batch_size)
    return config


def bench_variation(run: plan.Run, config: Config, seconds: float, **varied: Any) -> Row:
    """The round of another configuration with the same victim."""
    networks, tx, info = make_networks(config)
    stages = steps.stages(config)
    run = run._replace(config=config, stages=stages, networks=networks, tx=tx)
    shapes = jax.eval_shape(lambda: make_state(config, networks, tx, info, size=0))
    run = run._replace(template=shapes)
    playing = Playing(run, make_call(run))
    case = "round," + "=".join(str(value) for value in varied.values())
    turns = take_turns({case: playing.play}, seconds)[case] / rounds_in_call(run)
    median = float(np.median(turns))
    flops = cost.flops_of(make_step(run), shapes, run.victim)
    return make_row(
        case,
        turns,
        **varied,
        queries_per_second=stages[-1].queries_per_round / median,
        flops=flops,
        flops_per_second=flops / median,
    )


# replay


def bench_replay(config: Config, seconds: float, sizes: list[int], say: Say) -> Iterator[Row]:
    """Inserting and sampling a batch, and what drawing it by a permutation would take."""
    for dtype in ("uint8", "float32"):
        for size in sizes:
            sized = set_key(config, "replay.size", size)
            sized.replay.dtype = dtype
            name = f"{dtype}/{sized.replay.size}"
            if fits(replay_bytes(sized), name, say):
                for case, turns in take_turns(replay_cases(sized), seconds).items():
                    yield make_row(f"{case}/{name}", turns, batch_size=config.batch_size)


def replay_cases(config: Config) -> dict[str, Callable[[], Any]]:
    """What is done to a full buffer, and a baseline."""
    info = data.describe(config.dataset, config.data_dir)
    images, answers = make_batch(config, info)
    stored = jax.ShapeDtypeStruct(images.shape, jnp.dtype(config.replay.dtype))
    ring = jax.jit(lambda: replay.init(config.replay.size, stored, answers))()
    ring = ring.replace(size=jnp.int32(config.replay.size))
    insert, sample = make_insert(), make_sample(config.batch_size)

    def insert_batch() -> Array:
        nonlocal ring
        ring = insert(ring, images, answers)
        return ring.head

    @jax.jit
    def permute(ring: replay.Replay, turn: Array) -> tuple[Array, Array]:
        slots = jax.random.permutation(jax.random.key(turn), len(ring.images))
        slots = slots[: config.batch_size]
        return replay.decode(ring.images[slots]), ring.answers[slots]

    return {
        "insert": insert_batch,
        "sample": lambda: sample(ring, ring.head),
        "permutation": lambda: permute(ring, ring.head),
    }


def make_insert() -> Callable[[replay.Replay, Array, Array], replay.Replay]:
    """The project's own, in place."""
    return jax.jit(replay.insert, donate_argnums=0)


def make_sample(batch_size: int) -> Callable[[replay.Replay, Array], tuple[Array, Array]]:
    """The project's own, from a buffer and a number that should differ from call to call."""
    return jax.jit(lambda ring, turn: replay.sample(ring, jax.random.key(turn), batch_size))


def replay_bytes(config: Config) -> int:
    """Of the buffer."""
    info = data.describe(config.dataset, config.data_dir)
    image = models.IMAGE_SIZE**2 * info.channels * jnp.dtype(config.replay.dtype).itemsize
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


# checkpoint


def bench_checkpoint(config: Config, size: int, rate: float, say: Say) -> Iterator[Row]:
    """What checkpoints cost a training of `rate` queries a second with a replay of `size`.

    Where memory or disk do not hold it a smaller one is measured. The bytes of a checkpoint grow
    with it, and so, but for what networks and optimisers take, do its seconds: both are given as
    measured, and scaled.
    """
    interval = config.checkpoint_every_queries
    for dtype in ("uint8", "float32"):
        asked = set_key(config, "replay.size", size)
        asked.replay.dtype = dtype
        scale = 1
        while not room_for_saves(measured := scaled_down(asked, scale)):
            scale *= 2
        if scale > 1:
            say(f"{dtype}: measured with 1/{scale} of the images, for want of memory or disk")
        networks, tx, info = make_networks(measured)
        state = make_state(measured, networks, tx, info, size=0)
        num_saved = min(measured.checkpoint_every_queries, measured.replay.size)
        saves = measure_saves(state, num_saved, make_batch(measured, info))
        del state
        stall, background, num_bytes = (
            np.array([save[key] for save in saves]) for key in ("stall", "background", "bytes")
        )
        between = interval / rate
        yield make_row(
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
    config = set_key(config, "replay.size", config.replay.size // scale)
    config.checkpoint_every_queries = max(1, config.checkpoint_every_queries // scale)
    return config


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


def run() -> None:
    """Parses the command line, measures, and exits."""
    values = flags.FlagValues()
    flags.DEFINE_enum("suite", None, SUITES, "What is measured, see above.", flag_values=values)
    flags.DEFINE_string("json", None, "Where the results go.", flag_values=values)
    flags.DEFINE_float(
        "seconds", 30.0, f"Cases take turns so long, {MIN_TURNS} at least.", 0.0, flag_values=values
    )
    flags.DEFINE_boolean("sweep", False, "round: vary the configuration.", flag_values=values)
    flags.DEFINE_multi_string("vary", SWEEP, "sweep: KEY=VALUE,VALUE,...", flag_values=values)
    flags.DEFINE_list(
        "sizes", SIZES, "replay, checkpoint (the largest): of the buffer.", flag_values=values
    )
    flags.DEFINE_float(
        "queries_per_second", GOAL, "checkpoint: of the training.", 1e-9, flag_values=values
    )
    if not any(arg.partition("=")[0] in ("--config", "-config") for arg in sys.argv[1:]):
        sys.argv[1:1] = NARROW if jax.default_backend() == "cpu" else FULL
    cli.run(main, values, Config)


if __name__ == "__main__":
    run()
