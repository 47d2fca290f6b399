"""Benchmarks of a round: its parts, and how it grows with the configuration."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from disguide_jax.config import Config, validate
from disguide_jax.core import exchange, learn, mesh
from disguide_jax.core import images as core_images
from disguide_jax.core.types import Array, Learner, TrainState
from disguide_jax.errors import UserError
from disguide_jax.methods import disguide
from disguide_jax.options import RANDOM_WEIGHTS
from disguide_jax.run import evaluate, extraction, paying, program
from disguide_jax.run.loop import Sums
from disguide_jax.study import flops, measure
from disguide_jax.study.measure import Row, Say
from disguide_jax.victims import network

NUM_NOISE, NOISE_BATCH = 10_000, 500  # test images where they are noise, as many as CIFAR has


def bench_round(config: Config, seconds: float, vary: Sequence[str], say: Say) -> Iterator[Row]:
    """A round, its parts and, where keys are to `vary`, how it grows with them.

    On as many devices as a run of this configuration takes.
    """
    devices = jax.devices()[: program.resolve(config).devices]
    with mesh.use(devices):
        yield from _measure_round(config, seconds, vary, say)


def _measure_round(config: Config, seconds: float, vary: Sequence[str], say: Say) -> Iterator[Row]:
    variations = [variation for text in vary for variation in parse_variations(config, text)]
    config = without_files(config, say)
    run = program.build(config)
    call, compiling = compile_round(run)
    playing = Playing(run, call)
    playing.play()
    memory = measure.peak_memory()
    matmul, matmul_flops = flops.make_matmul(jnp.dtype(run.config.precision))
    cases = {"round": playing.play, "matmul": matmul}
    if config.method == "disguide":
        cases |= playing.parts()
    else:
        say("the parts of a round are measured for disguide only")
    cases["evaluation"] = playing.evaluate
    times = measure.take_turns(cases, seconds)

    every = extraction.event_intervals(config, run.stages[-1])
    num_tested = evaluate.num_images(playing.test_set)
    num_test = NUM_NOISE if config.dataset.startswith("noise") else num_tested
    num_saved = min(config.checkpoint_every_queries, len(playing.state.replay.images))
    times["round"] /= run.config.rounds_per_call
    times["host"] = np.array(playing.host_seconds) / run.config.rounds_per_call
    times["evaluation"] *= num_test / num_tested / every["evaluate"]
    saves = measure.measure_saves(playing.state, num_saved, measure.make_batch(run.kit))
    times["checkpoint"] = np.array([save["stall"] for save in saves]) / every["checkpoint"]

    medians = {name: float(np.median(turns)) for name, turns in times.items()}
    total = medians["round"] + medians["evaluation"] + medians["checkpoint"]
    num_flops = flops.flops_of(make_step(run), run.template, run.network_victim)
    peak = matmul_flops / float(times["matmul"].min())
    sent = run.stages[-1].queries
    more = {
        "round": {
            "queries_per_second": sent / medians["round"],
            "queries_per_second_overall": sent / total,  # with evaluations and checkpoints
            "flops": num_flops,
            "flops_per_second": num_flops / medians["round"],
            "share_of_matmul_peak": num_flops / medians["round"] / peak,
            "compute_dtype": run.config.precision,
            "rounds_per_call": run.config.rounds_per_call,
            **compiling,
            **memory,
        },
        "matmul": {"flops_per_second": peak},
        "evaluation": {"every_rounds": every["evaluate"], "images": num_test},
        "checkpoint": {"every_rounds": every["checkpoint"], "images": num_saved},
    }
    for name, turns in times.items():
        share = {} if name == "matmul" else {"share": medians[name] / total}
        yield measure.make_row(name, turns, **share, **more.get(name, {}))

    del playing, cases
    for key, value in variations:
        varied = measure.set_key(config, key, value)
        if measure.fits(measure.replay_bytes(varied), f"{key}={value}", say):
            yield bench_variation(run, varied, seconds, key=key, value=value)


def without_files(config: Config, say: Say) -> Config:
    """The same with random weights where there are none, and noise to test on.

    Neither changes what a round costs.
    """
    config = copy.deepcopy(config)
    if config.victim.weights != RANDOM_WEIGHTS:
        try:
            network.weights_path(config.victim)
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

    def __init__(self, run: program.Program, call: jax.stages.Wrapped | jax.stages.Compiled):
        config, self._run, self._call = run.config, run, call
        self.state = measure.make_state(run.kit, size=len(run.template.replay.images))
        self.test_set = paying.make_test_set(run)
        if config.dataset.startswith("noise"):
            repeats = NOISE_BATCH // evaluate.num_images(self.test_set)
            self.test_set = jax.tree.map(
                lambda x: jnp.concatenate([x] * repeats, axis=1), self.test_set
            )
        self.host_seconds: list[float] = []  # of each call
        self._score = evaluate.make_evaluate(run.networks.exact_clones, run.network_victim)

    def play(self) -> TrainState:
        """One call of the compiled step, and what the host does before and after."""
        start = time.perf_counter()
        num_rounds = self._run.config.rounds_per_call
        self.state, *returned = self._call(self.state, self._run.network_victim, num_rounds)
        sent = time.perf_counter()
        jax.block_until_ready(self.state)
        back = time.perf_counter()
        Sums().add(0, *returned)
        self.host_seconds.append(sent - start + time.perf_counter() - back)
        return self.state

    def evaluate(self) -> evaluate.Scores:
        """All clones on the test set."""
        return self._score(self.state.clones.variables, self.test_set)

    def parts(self) -> dict[str, Callable[[], object]]:
        """What makes up a round of disguide, in pieces that are compiled one by one."""
        kit = self._run.kit
        config = kit.config
        images, answers = measure.make_batch(kit)
        generator, clones = jax.tree.map(jnp.copy, (self.state.generator, self.state.clones))

        @jax.jit
        def generator_step(generator: Learner, clones: Learner) -> tuple[Learner, Array]:
            """The update, and the images that will be sent."""
            latent_dim, channels = config.generator.latent_dim, kit.task.channels
            drawn = core_images.draw_latent(
                jax.random.key(0), config.batch_size, latent_dim, channels
            )
            generator, _ = disguide.update_generator(kit, generator, clones.variables, *drawn)
            images, _ = core_images.generate(
                kit.networks.generator,
                generator.variables,
                *drawn,
                gray_every=config.generator.gray_every,
                train=False,
            )
            return generator, images

        @jax.jit
        def ask(oracle: network.Victim, images: Array) -> Array:
            return oracle(images)

        @jax.jit
        def clone_step(clones: Learner, images: Array, answers: Array) -> Learner:
            return learn.teach(
                clones, kit.networks.clones, kit.tx.clones, kit.answers.loss, images, answers
            )[0]

        def clone_steps() -> Learner:
            updated = clones
            for _ in range(1 + config.replay.batches):
                updated = clone_step(updated, images, answers)
            return updated

        insert, sample = measure.make_insert(), measure.make_sample(config.batch_size)

        def use_replay() -> list[tuple[Array, Array]]:
            ring = insert(self.state.replay, images, answers)
            self.state = self.state.replace(replay=ring)
            return [sample(ring, ring.head + i) for i in range(config.replay.batches)]

        return {
            "generator_step": lambda: generator_step(generator, clones),
            "victim": lambda: ask(self._run.network_victim, images),
            "clone_steps": clone_steps,
            "replay": use_replay,
        }


def make_call(run: program.Program) -> jax.stages.Wrapped:
    """(state, victim, num_rounds) -> (state, metric sums, rounds played), as the program does."""
    return exchange.make_call(make_step(run), looped=run.config.rounds_per_call > 1)


def make_step(run: program.Program) -> exchange.Play:
    """One round of the run's last stage."""
    return program.make_play(run.kit, run.stages[-1])


def compile_round(run: program.Program) -> tuple[jax.stages.Compiled, dict[str, float]]:
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
                lowered = make_call(run).lower(
                    run.template, run.network_victim, run.config.rounds_per_call
                )
                call = lowered.compile()
                seconds[name] = time.perf_counter() - start
        finally:
            for key, value in before.items():
                jax.config.update(key, value)
            compilation_cache.reset_cache()
    return call, seconds


def parse_variations(config: Config, text: str) -> list[tuple[str, int]]:
    """KEY=VALUE,VALUE,... as pairs of key and value.

    Raises:
      UserError: the values are not numbers, or the configuration cannot have them.
    """
    key, _, values = text.partition("=")
    try:
        pairs = [(key, int(value)) for value in values.split(",")]
        for pair in pairs:
            validate(measure.set_key(config, *pair))
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"--vary: {text!r} must be KEY=VALUE,VALUE,... with a key of the configuration and "
            "whole numbers"
        ) from error
    return pairs


def bench_variation(run: program.Program, config: Config, seconds: float, **varied: object) -> Row:
    """The round of another configuration with the same victim."""
    config = program.resolve(config)
    kit, stages = measure.make_kit(config), program.stages_of(config)
    run = run._replace(config=config, stages=stages, kits={stages[-1].name: kit})
    shapes = jax.eval_shape(lambda: measure.make_state(kit, size=0))
    run = run._replace(template=shapes)
    playing = Playing(run, make_call(run))
    case = "round," + "=".join(str(value) for value in varied.values())
    turns = measure.take_turns({case: playing.play}, seconds)[case] / run.config.rounds_per_call
    median = float(np.median(turns))
    num_flops = flops.flops_of(make_step(run), shapes, run.network_victim)
    return measure.make_row(
        case,
        turns,
        **varied,
        queries_per_second=stages[-1].queries / median,
        flops=num_flops,
        flops_per_second=num_flops / median,
    )
