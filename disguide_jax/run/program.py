"""A configuration turned into objects, here and once: no other module asks what its words mean.

`resolve` leaves nothing to choose, and `build` makes of it a `Program`: method, stages,
networks, optimisers, victim. What is said of the victim is read by `asked`, of answers by
`answering`.
"""

import copy
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from disguide_jax import models
from disguide_jax.config import Config, spelled_out, validate
from disguide_jax.core import backend, images, learn, mesh, replay, stages, streams
from disguide_jax.core.exchange import Drive, Kit, Method, Play, Round, drive, fuse
from disguide_jax.core.types import (
    Array,
    Average,
    Key,
    Metrics,
    Net,
    Networks,
    Optimizers,
    Stage,
    Task,
    TrainState,
)
from disguide_jax.errors import UserError
from disguide_jax.files import transfer
from disguide_jax.methods import METHODS
from disguide_jax.run import answering, asked, devices
from disguide_jax.settings import refuse_ignored
from disguide_jax.victims import network
from disguide_jax.victims.host import Endpoint


class Program(NamedTuple):
    """What a run is made of and does not change."""

    config: Config  # with nothing left to choose
    method: Method
    stages: tuple[Stage, ...]
    kits: dict[str, Kit]  # by the stage's name
    victim: network.Victim | Endpoint
    about_victim: str  # what it is in words
    template: TrainState  # shapes

    @property
    def num_rounds(self) -> int:
        """The rounds of all stages."""
        return stages.total(self.stages)

    @property
    def queries(self) -> int:
        """Sent by the end of the run; the budget, or a little less."""
        return stages.queries_after(self.stages, self.num_rounds)

    @property
    def kit(self) -> Kit:
        """The kit of the last stage."""
        return self.kits[self.stages[-1].name]

    @property
    def networks(self) -> Networks:
        """What is trained."""
        return self.kit.networks

    @property
    def network_victim(self) -> network.Victim:
        """The victim whose weights are at hand.

        Raises:
          UserError: it is an endpoint.
        """
        if isinstance(self.victim, network.Victim):
            return self.victim
        raise UserError(
            f"config.victim.endpoint is {self.config.victim.endpoint!r}; this needs a victim whose "
            "weights are at hand (config.victim.weights)"
        )

    def call(self, stage: Stage) -> Play:
        """One round of a stage with a victim that can be traced, not yet compiled."""
        return make_play(self.kits[stage.name], stage)

    def drive(self, stage: Stage) -> Drive:
        """One round of a stage with a victim on the host, compiled around it."""
        kit = self.kits[stage.name]
        return drive(round_of(kit, stage), kit.query_dtype)


def resolve(config: Config) -> Config:
    """The configuration with nothing left to choose but what the victim's file decides.

    Raises:
      UserError: a value is wrong, or one that is set is of no use to the method or the labels.
    """
    validate(config)
    if config.seeds:
        raise UserError(
            f"config.seeds is {config.seeds}; one run has one seed, config.seed: "
            "disguide_jax.main runs several"
        )
    method = method_of(config)
    refuse_ignored(config, method.ignores, method.name)
    config = spelled_out(config)
    refuse_ignored(config, *answering.ignored(config))
    if config.precision == "auto":
        config.precision = backend.usual_dtype().name
    config.clones.width = config.clones.width or models.usual_width(config.clones.model)
    config.fidelity_images = asked.num_fidelity_images(config)
    if config.victim.endpoint:
        config.rounds_per_call = 1
    if method.learns_from_file:
        config.replay.size = transfer.num_images(config.offline.queries)
    config.rounds_per_call = config.rounds_per_call or backend.rounds_a_call()
    config.devices = devices.number(config)
    devices.refuse_uneven(config, method)
    kept, config.query_dtype = config.replay.dtype, query_dtype(config)
    if method.keeps_replay and kept not in ("float32", config.query_dtype):
        raise UserError(
            f"config.query_dtype is {config.query_dtype!r}, but config.replay.dtype is {kept!r}: "
            "the replay would not hold what was answered; choose the same, or float32 for it"
        )
    return config


def build(config: Config) -> Program:
    """Loads the victim and makes everything else, on the devices in use.

    Raises:
      UserError: something in the configuration, the weights or the data is wrong.
    """
    config = resolve(config)
    victim, task, about = asked.load(config)
    stages, kits, template = make_trained(config, task)
    return Program(
        config=config,
        method=method_of(config),
        stages=stages,
        kits=kits,
        victim=mesh.on_all(victim) if isinstance(victim, network.Victim) else victim,
        about_victim=about,
        template=mesh.like(template),
    )


def make_trained(
    config: Config, task: Task
) -> tuple[tuple[Stage, ...], dict[str, Kit], TrainState]:
    """What is trained: the stages, what their rounds are built from, and the state's shapes."""
    stages, networks = stages_of(config), make_networks(config, task)
    kits = {stage.name: make_kit(config, task, networks, stage) for stage in stages}
    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    state = jax.eval_shape(functools.partial(init_state, kits[stages[-1].name]), key)
    return stages, kits, state


def compute_dtype(precision: str) -> jnp.dtype | None:
    """The type that networks are told to compute in; None: that of their weights, float32."""
    dtype = backend.usual_dtype() if precision == "auto" else jnp.dtype(precision)
    return None if dtype == jnp.float32 else dtype


def method_of(config: Config) -> Method:
    """The configured method.

    Raises:
      UserError: there is no such method, or the configuration does not suit it.
    """
    if config.method not in METHODS:
        raise UserError(
            f"config.method is {config.method!r}; it must be one of {', '.join(METHODS)}"
        )
    method = METHODS[config.method]
    if config.guard == "restart" and not method.can_restart:
        raise UserError(
            f"config.guard is 'restart'; {method.name}, which builds on its earlier stages, can "
            "only warn or stop"
        )
    method.check(config)
    return method


def stages_of(config: Config) -> tuple[Stage, ...]:
    """What the budget pays for in full; what is left over is never sent.

    Raises:
      UserError: it does not pay for a single round.
    """
    kept_apart = asked.num_fidelity_images(config)
    left = copy.deepcopy(config)
    left.query_budget -= kept_apart
    stages = method_of(config).stages(left)
    if stages[-1].num_rounds < 1:
        raise UserError(
            f"config.query_budget is {config.query_budget:,}; it must be at least "
            f"{stages[-1].queries + kept_apart:,}, which is what one round costs"
            + (f", with {kept_apart:,} to measure fidelity" if kept_apart else "")
        )
    return stages


def make_networks(config: Config, task: Task) -> Networks:
    """The generators and the stacked clones, computing in the configured precision."""
    dtype = compute_dtype(config.precision)

    def make_clones(dtype: jnp.dtype | None) -> Net:
        net = models.make_classifier(
            config.clones.model,
            width=config.clones.width,
            num_classes=task.num_classes,
            size=task.size,
            channels=task.channels,
            dtype=dtype,
        )
        return models.stack(net, config.num_clones)

    generator = models.make_generator(
        config.generator.model,
        width=config.generator.width,
        latent_dim=config.generator.latent_dim,
        size=task.size,
        channels=task.channels,
        dtype=dtype,
    )
    discriminator = None
    if method_of(config).has_discriminator:
        discriminator = models.make_discriminator(
            width=config.generator.width, size=task.size, channels=task.channels, dtype=dtype
        )
    generators = models.share(generator, config.generator.count)
    return Networks(generators, make_clones(dtype), make_clones(None), discriminator)


def boundaries_of(config: Config, stage: Stage) -> dict[int, float]:
    """Rounds of a stage after which learning rates are scaled, and by how much."""
    return learn.boundaries(
        config.schedule.fractions,
        factor=config.schedule.factor,
        block_rounds=config.schedule.block_rounds,
        num_rounds=stage.num_rounds,
    )


def make_optimizers(config: Config, stage: Stage) -> Optimizers:
    """Adam or SGD for the generator, SGD with momentum for all clones together."""
    usual = method_of(config).optimizers
    if usual is not None:
        return usual(config, stage)

    def schedule(rate: float, updates: int) -> optax.Schedule:
        if config.schedule.shape == "cosine":
            return optax.cosine_decay_schedule(rate, stage.num_rounds * updates)
        scales = boundaries_of(config, stage)
        return optax.piecewise_constant_schedule(
            rate, {at * updates: scale for at, scale in scales.items()}
        )

    generator, clones = config.generator, config.clones
    generator_rate = schedule(generator.learning_rate, stage.generator_updates)
    clones_rate = schedule(clones.learning_rate, stage.clone_updates)
    decay = generator.weight_decay
    return Optimizers(
        generator=learn.sgd(generator_rate, momentum=generator.momentum, weight_decay=decay)
        if generator.optimizer == "sgd"
        else learn.adam(generator_rate, weight_decay=decay),
        clones=learn.sgd(clones_rate, momentum=clones.momentum, weight_decay=clones.weight_decay),
        generator_rate=lambda rounds: generator_rate(rounds * stage.generator_updates),
        clones_rate=lambda rounds: clones_rate(rounds * stage.clone_updates),
    )


def query_dtype(config: Config) -> str:
    """What images are rounded to before they are sent: what the replay keeps, or else nothing.

    An endpoint takes uint8.
    """
    if config.victim.endpoint:
        return "uint8"
    if config.query_dtype != "auto":
        return config.query_dtype
    return config.replay.dtype if method_of(config).keeps_replay else "float32"


def make_kit(config: Config, task: Task, networks: Networks, stage: Stage) -> Kit:
    """What the method builds the rounds of a stage from."""
    return Kit(
        config=config,
        task=task,
        networks=networks,
        tx=make_optimizers(config, stage),
        answers=answering.make_answers(config, task.num_classes),
        query_dtype=jnp.dtype(query_dtype(config)),
    )


def init_state(kit: Kit, key: Key) -> TrainState:
    """A fresh state: initialised networks and optimisers, an empty replay, nothing spent.

    All randomness of the run comes from the key, which `jax.random.key(config.seed)` is.
    """
    config, task = kit.config, kit.task
    method = method_of(config)
    root, generator_key, clones_key = jax.random.split(key, 3)
    clones = learn.start(kit.networks.clones.init(clones_key), kit.tx.clones)
    size = (task.size, task.size, task.channels)
    images = jax.ShapeDtypeStruct((config.batch_size, *size), jnp.dtype(config.replay.dtype))
    shape = kit.answers.shape(task.num_classes)
    answered = jax.ShapeDtypeStruct((config.batch_size, *shape), kit.answers.dtype)
    state = TrainState(
        round=jnp.zeros((), jnp.int32),
        queries=jnp.zeros((), jnp.int32),
        answered=jnp.zeros((task.num_classes,), jnp.int32),
        key=root,
        generator=learn.start(kit.networks.generator.init(generator_key), kit.tx.generator),
        clones=clones,
        replay=replay.init(config.replay.size if method.keeps_replay else 1, images, answered),
        average=learn.start_average(clones) if config.clones.average_decay else (),
    )
    return mesh.settled(state.replace(extra=method.init(kit, state)))


def round_of(kit: Kit, stage: Stage) -> Round:
    """The parts of one round of a stage."""
    parts = method_of(kit.config).make_round(kit, stage)
    decay = kit.config.clones.average_decay
    if not decay:
        return parts

    def follow(state: TrainState) -> tuple[TrainState, Metrics]:
        if not isinstance(state.average, Average):
            raise AssertionError("the state keeps no average of the clones")
        return state.replace(average=learn.follow(state.average, state.clones, decay)), {}

    return *parts, follow


def make_play(kit: Kit, stage: Stage) -> Play:
    """The pure function (state, victim) -> (state, metrics) of one round of a stage.

    `victim` is any pytree that can be called with images [N, H, W, channels] in [-1, 1] and
    answers with probabilities [N, K] or labels [N]; see `disguide_jax.victims`.
    """
    return fuse(round_of(kit, stage), kit.query_dtype)


def restart(kit: Kit, state: TrainState, *, clones_too: bool) -> TrainState:
    """The same run with a fresh generator, and fresh clones if asked for; nothing is paid again.

    Replay, rounds and queries stay, and learning rates go on as scheduled.
    """
    key = jax.random.fold_in(streams.of_run(state, streams.RESTART), state.round)
    generator_key, clones_key = jax.random.split(key)
    variables = kit.networks.generator.init(generator_key)
    generator = learn.start_again(state.generator, variables, kit.tx.generator)
    state = state.replace(generator=generator)
    if not clones_too:
        return state
    variables = kit.networks.clones.init(clones_key)
    clones = learn.start_again(state.clones, variables, kit.tx.clones)
    average = learn.start_average(clones) if state.average else ()
    return state.replace(clones=clones, average=average)


def sample_images(kit: Kit, state: TrainState, num: int) -> Array:
    """What the generator makes of always the same latent vectors, [num, H, W, channels]."""
    config = kit.config.generator
    key = streams.of_run(state, streams.SAMPLES)
    drawn = images.draw_latent(key, num, config.latent_dim, kit.task.channels)
    made, _ = images.generate(
        kit.networks.generator,
        state.generator.variables,
        *drawn,
        gray_every=config.gray_every,
        train=False,
    )
    return made
