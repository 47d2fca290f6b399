"""The train state and the compiled step: state -> (state, metrics), whatever the method."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from disguide_jax import models, optim, replay
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.methods import dfme, dfms, disguide, dual_students, maze
from disguide_jax.state import Array, Metrics, Networks, Optimizers, Stage, TrainState, Variables

METHODS = {
    "disguide": disguide,
    "dual_students": dual_students,
    "dfme": dfme,
    "maze": maze,
    "dfms": dfms,
}

RESTART = 2**31 - 20  # the stream of randomness behind fresh networks, apart from all rounds

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def method_of(config: Config) -> ModuleType:
    """The module of the configured method.

    Raises:
      UserError: there is no such method, or the configuration does not suit it.
    """
    if config.method not in METHODS:
        raise UserError(
            f"config.method is {config.method!r}; it must be one of {', '.join(METHODS)}"
        )
    method = METHODS[config.method]
    method.check(config)
    return method


def stages(config: Config) -> tuple[Stage, ...]:
    """What the budget pays for in full; what is left over is never sent.

    Raises:
      UserError: it does not pay for a single round.
    """
    method = method_of(config)
    if method is dfms:
        return dfms.stages(config)
    cost = method.queries_per_round(config)
    if config.query_budget < cost:
        raise UserError(
            f"config.query_budget is {config.query_budget:,}; it must be at least "
            f"{cost:,}, which is what one round costs"
        )
    return (Stage("extraction", config.query_budget // cost, cost),)


def num_rounds(config: Config) -> int:
    """Rounds of all stages. Raises UserError as `stages` does."""
    return sum(stage.num_rounds for stage in stages(config))


def stage_at(stages: tuple[Stage, ...], round_: int) -> tuple[Stage, int]:
    """The stage that a round belongs to, and that stage's first round."""
    first = 0
    for stage in stages:
        if round_ < first + stage.num_rounds:
            return stage, first
        first += stage.num_rounds
    raise ValueError(f"round {round_} of {first}")


def queries_after(stages: tuple[Stage, ...], num_rounds: int) -> int:
    """Images that the victim must have been sent when so many rounds are done."""
    queries = 0
    for stage in stages:
        done = min(num_rounds, stage.num_rounds)
        queries += done * stage.queries_per_round
        num_rounds -= done
    return queries


def make_networks(
    config: Config, *, num_classes: int, channels: int, dtype: Any = None
) -> Networks:
    """The generator and the stacked clones, computing in `dtype` (None: as their weights)."""
    clone, exact_clone = (
        models.make_classifier(
            config.clones.model,
            width=config.clones.width,
            num_classes=num_classes,
            channels=channels,
            dtype=compute_dtype,
        )
        for compute_dtype in (dtype, None)
    )
    generator = models.make_generator(
        config.generator.model,
        width=config.generator.width,
        latent_dim=config.generator.latent_dim,
        channels=channels,
        dtype=dtype,
    )
    clones, exact_clones = (models.stack(c, config.num_clones) for c in (clone, exact_clone))
    discriminator = None
    if method_of(config) is dfms:
        discriminator = models.make_discriminator(
            width=config.generator.width, channels=channels, dtype=dtype
        )
    return Networks(generator, clones, exact_clones, discriminator)


def make_optimizers(config: Config, stage: Stage | None = None) -> Optimizers:
    """All optimisers, with schedules over a stage; by default the last one, often the only one."""
    method = method_of(config)
    if method is dfms:
        return dfms.make_optimizers(config, stage or stages(config)[-1])
    return optim.make_optimizers(
        config,
        num_rounds=num_rounds(config),
        generator_updates=method.generator_updates_per_round(config),
        clone_updates=method.clone_updates_per_round(config),
    )


def init_state(
    config: Config, networks: Networks, tx: Optimizers, *, num_classes: int, channels: int
) -> TrainState:
    """A fresh state: initialised networks and optimisers, an empty replay, nothing spent."""
    method = method_of(config)
    root, generator_key, clones_key = jax.random.split(jax.random.key(config.seed), 3)
    generator, clones = networks.generator.init(generator_key), networks.clones.init(clones_key)
    size = (models.IMAGE_SIZE, models.IMAGE_SIZE, channels)
    images = jax.ShapeDtypeStruct((config.batch_size, *size), jnp.dtype(config.replay.dtype))
    answers = (
        jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
        if config.labels == "hard"
        else jax.ShapeDtypeStruct((config.batch_size, num_classes), jnp.float32)
    )
    state = TrainState(
        round=jnp.zeros((), jnp.int32),
        queries=jnp.zeros((), jnp.int32),
        answered=jnp.zeros((num_classes,), jnp.int32),
        key=root,
        generator=generator,
        clones=clones,
        generator_opt=tx.generator.init(generator.params),
        clones_opt=tx.clones.init(clones.params),
        replay=replay.init(config.replay.size if method.KEEPS_REPLAY else 1, images, answers),
    )
    if method is dfms:
        return state.replace(extra=dfms.init_extra(config, networks, tx, state, answers))
    if config.clones.average_decay:
        return state.replace(extra=start_average(state.clones))
    return state


def make_train_step(
    config: Config,
    networks: Networks,
    tx: Optimizers,
    *,
    channels: int,
    stage: Stage | None = None,
) -> TrainStep:
    """The pure function (state, victim) -> (state, metrics) of one round.

    dfms has several kinds of rounds, one for each `stage` (default: its last).

    `victim` is any pytree that can be called with images [N, H, W, channels] in [-1, 1] and
    answers with probabilities [N, K] or labels [N]; see `disguide_jax.victim`.
    """
    method = method_of(config)
    if method is dfms:
        stage = stage or stages(config)[-1]
        return dfms.make_round(config, networks, channels=channels, stage=stage)
    play_round = method.make_round(config, networks, tx, channels=channels)
    return averaging(play_round, config.clones.average_decay)


class Average(NamedTuple):
    """The exponential average of the clones' variables."""

    clones: Variables
    rounds: Array  # [] int32, that it has followed them for


def start_average(clones: Variables) -> Average:
    """The average before the first round with these clones."""
    return Average(clones, jnp.zeros((), jnp.int32))


def averaging(play_round: TrainStep, decay: float) -> TrainStep:
    """The same round, after which `state.extra` follows the clones as their average.

    The decay of the average of t rounds is at most t / (9 + t), so that it forgets how the
    clones were initialised.
    """
    if not decay:
        return play_round

    def play_and_average(state: TrainState, victim: Any) -> tuple[TrainState, Metrics]:
        state, metrics = play_round(state, victim)
        rounds = state.extra.rounds + 1
        kept = jnp.minimum(decay, rounds / (9 + rounds))
        clones = jax.tree.map(
            lambda a, c: kept * a + (1 - kept) * c, state.extra.clones, state.clones
        )
        return state.replace(extra=Average(clones, rounds)), metrics

    return play_and_average


def restart(
    networks: Networks, tx: Optimizers, state: TrainState, *, clones_too: bool
) -> TrainState:
    """The same run with a fresh generator, and fresh clones if asked for; nothing is paid again.

    Replay, rounds and queries stay, and learning rates go on as scheduled.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, RESTART), state.round)
    generator_key, clones_key = jax.random.split(key)

    generator = networks.generator.init(generator_key)
    opt = optim.start_again(tx.generator, generator.params, state.generator_opt)
    state = state.replace(generator=generator, generator_opt=opt)
    if not clones_too:
        return state
    clones = networks.clones.init(clones_key)
    opt = optim.start_again(tx.clones, clones.params, state.clones_opt)
    extra = start_average(clones) if isinstance(state.extra, Average) else state.extra
    return state.replace(clones=clones, clones_opt=opt, extra=extra)


def result(config: Config, state: TrainState) -> Variables:
    """The clones as the attacker takes them: their average where one is kept."""
    return state.extra.clones if config.clones.average_decay else state.clones


def report(config: Config, state: TrainState) -> dict[str, float]:
    """What a method has to say beside the sums of its metrics, for the log."""
    return dfms.report(state.extra) if method_of(config) is dfms else {}


def make_train_call(train_step: TrainStep, *, looped: bool) -> Callable:
    """Compiles the step: (state, victim, num_rounds) -> (state, metric sums, rounds played).

    The state is donated. Rounds after one with a metric that is not finite are not played, so
    that nothing more is spent on them.

    Args:
      train_step: from `make_train_step`.
      looped: play `num_rounds` rounds on the device in one call. Otherwise a call is one
        round, as suits CPUs, where a convolution's gradient inside a loop is 30 times slower.
    """

    def one_round(state: TrainState, victim: Any, num_rounds: Any) -> tuple:
        del num_rounds
        return *train_step(state, victim), 1

    def many_rounds(state: TrainState, victim: Any, num_rounds: Any) -> tuple:
        shapes = jax.eval_shape(train_step, state, victim)[1]
        zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)

        def going_on(carry: tuple) -> Array:
            _, sums, played = carry
            finite = jnp.isfinite(jnp.stack(jax.tree.leaves(sums))).all()
            return (played < num_rounds) & finite

        def play(carry: tuple) -> tuple:
            state, sums, played = carry
            state, metrics = train_step(state, victim)
            return state, jax.tree.map(jnp.add, sums, metrics), played + 1

        # A dynamic count, so that a short last call compiles nothing new.
        return jax.lax.while_loop(going_on, play, (state, zeros, jnp.int32(0)))

    return jax.jit(many_rounds if looped else one_round, donate_argnames="state")
