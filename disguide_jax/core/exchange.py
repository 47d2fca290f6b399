"""What a method is, and how its rounds are played against a victim.

A round is a tuple of parts. A `Step` changes the state by itself. An `Exchange` proposes
images, and learns from the answers to them; in between, here and nowhere else, the victim is
asked and every image counted. Methods write down the parts; whether they are played inside one
compiled program (`fuse`) or around a victim on the host (`drive`) is none of their business.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.config import Config
from disguide_jax.core import backend, mesh, pixels
from disguide_jax.core.answers import Answers, to_labels
from disguide_jax.core.types import (
    Array,
    Ask,
    Metrics,
    Networks,
    Optimizers,
    Stage,
    Task,
    TrainState,
    Variables,
)

Step = Callable[[TrainState], tuple[TrainState, Metrics]]
Propose = Callable[[TrainState, Array], tuple[Array, Any]]  # state, index -> images, carry
Learn = Callable[[TrainState, Any, Array, Array], tuple[TrainState, Metrics]]  # images, answers
Play = Callable[[TrainState, Ask], tuple[TrainState, Metrics]]
Trade = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | Array]]  # to send -> sent, answers
Drive = Callable[[TrainState, Trade], tuple[TrainState, Metrics]]


class Exchange(NamedTuple):
    """One batch sent to the victim, and what is learnt from its answers; `times` in a row.

    `index`, below `times`, tells them apart. What `propose` has changed goes through `carry`,
    so that the state is as it was until the answers are there.
    """

    num_queries: int  # Q, of one time
    propose: Propose
    learn: Learn
    times: int = 1


Round = tuple[Step | Exchange, ...]


class Kit(NamedTuple):
    """What a method builds the rounds of a stage from: a configuration turned into objects."""

    config: Config  # of which methods read numbers
    task: Task
    networks: Networks
    tx: Optimizers  # of the stage
    answers: Answers
    query_dtype: jnp.dtype  # what images are rounded to before they are sent


def clones_of(state: TrainState) -> Variables:
    """The clones as the attacker takes them: their average where one is kept."""
    return state.average.clones if state.average else state.clones.variables


class Method(NamedTuple):
    """All that is known of a method outside its file."""

    name: str
    check: Callable[[Config], None]  # raises UserError for what it cannot do
    stages: Callable[[Config], tuple[Stage, ...]]  # what the budget pays for in full
    make_round: Callable[[Kit, Stage], Round]
    ignores: tuple[str, ...] = ()  # keys that may only have their default, or all below "KEY."
    keeps_replay: bool = False
    replays_all: bool = False  # every answered image goes to the replay, in order
    has_discriminator: bool = False
    learns_from_file: bool = False  # the replay is filled from a transfer set at the start
    can_restart: bool = True
    devices_meet_in_loops: bool = False  # of a compiled round, or in its branches
    optimizers: Callable[[Config, Stage], Optimizers] | None = None  # None: the usual ones
    init: Callable[[Kit, TrainState], Any] = lambda kit, state: ()  # -> state.extra
    result: Callable[[TrainState], Variables] = clones_of
    report: Callable[[TrainState], dict[str, float]] = lambda state: {}  # for the log


def account(state: TrainState, answers: Array) -> TrainState:
    """Counts answered images, by class. The one accountant."""
    counts = jnp.bincount(to_labels(answers), length=len(state.answered)).astype(jnp.int32)
    return state.replace(queries=state.queries + len(answers), answered=state.answered + counts)


def trade(
    exchange: Exchange, ask: Ask, dtype: jnp.dtype
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """The function (state, index) -> (state, metrics) of one exchange with a traced victim."""

    def play(state: TrainState, index: Array) -> tuple[TrainState, Metrics]:
        images, carry = exchange.propose(state, index)
        chex.assert_axis_dimension(images, 0, exchange.num_queries)
        images = pixels.as_sent(images, dtype)
        answers = ask(images)
        return exchange.learn(account(state, answers), carry, images, answers)

    return play


def fuse(parts: Round, dtype: jnp.dtype) -> Play:
    """One round as a pure function (state, victim) -> (state, metrics), for a traced victim.

    Args:
      parts: of the round.
      dtype: what images are rounded to before they are sent.
    """

    def play(state: TrainState, victim: Ask) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        for part in parts:
            if isinstance(part, Exchange):
                step = trade(part, victim, dtype)
                state, new = repeat(step, state, jnp.arange(part.times))
            else:
                state, new = part(state)
            metrics |= new
        return end_round(state), metrics

    return play


def drive(parts: Round, dtype: jnp.dtype) -> Drive:
    """The same for a victim on the host: what lies between two of its answers is one program.

    The victim is an ordinary function of the images that it is sent, in `dtype`, which returns
    what was sent and the answers; what it raises is passed on, and the state given is then lost.
    Nothing is computed while it answers: in every method what comes next needs the answers,
    replayed batches, too, which are learnt by clones that have learnt the new ones.
    """
    exchanges: list[Exchange] = []
    steps: list[list[Step]] = [[]]  # before each exchange, and after the last
    for part in parts:
        if not isinstance(part, Exchange):
            steps[-1].append(part)
        elif part.times:
            exchanges.append(part)
            steps.append([])

    def propose(number: int, state: TrainState, index: Array | int) -> tuple[Array, Any]:
        images, carry = exchanges[number].propose(state, jnp.int32(index))
        return pixels.encode(images, dtype), carry

    def learn(
        number: int, state: TrainState, carry: Any, sent: Array, answers: Array
    ) -> tuple[TrainState, Metrics]:
        state = account(state, answers)
        return exchanges[number].learn(state, carry, pixels.decode(sent), answers)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def advance(
        number: int, state: TrainState, *answered: Any
    ) -> tuple[TrainState, Metrics, tuple[Array, Any] | None]:
        """From the answers to the exchange before, if any, up to the next one or the end."""
        state, metrics = learn(number - 1, state, *answered) if answered else (state, {})
        for step in steps[number]:
            state, new = step(state)
            metrics |= new
        if number == len(exchanges):
            return end_round(state), metrics, None
        return state, metrics, propose(number, state, 0)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def again(
        number: int, state: TrainState, index: Array, *answered: Any
    ) -> tuple[TrainState, tuple[Array, Any]]:
        """From the answers to one time of an exchange up to its next time."""
        state, _ = learn(number, state, *answered)
        return state, propose(number, state, index)

    def play(state: TrainState, victim: Trade) -> tuple[TrainState, Metrics]:
        state, metrics, proposed = advance(0, state)
        for number, exchange in enumerate(exchanges):
            for index in range(1, exchange.times):
                images, carry = proposed
                answered = carry, *victim(jax.device_get(images))
                state, proposed = again(number, state, np.int32(index), *answered)
            images, carry = proposed
            answered = carry, *victim(jax.device_get(images))
            state, new, proposed = advance(number + 1, state, *answered)
            metrics |= new
        return state, metrics

    return play


def end_round(state: TrainState) -> TrainState:
    """The state when all parts of a round have been played."""
    return mesh.settled(state.replace(round=state.round + 1))


def repeat[Carry](
    step: Callable[[Carry, Array], tuple[Carry, Metrics]], carry: Carry, over: Array
) -> tuple[Carry, Metrics]:
    """Takes a step with each element of `over`; returns the metrics of the last, {} of none.

    A loop, which compiles in less time, unless the backend unrolls it.
    """
    first = jax.ShapeDtypeStruct(over.shape[1:], over.dtype)  # a key would count as used
    if len(over) > 1 and not backend.unrolls(step, carry, first):
        carry, metrics = jax.lax.scan(step, carry, over)
        return carry, {name: values[-1] for name, values in metrics.items()}
    metrics = {}
    for each in over:
        carry, metrics = step(carry, each)
    return carry, metrics


def many[State, Given](
    play: Callable[[State, Given], tuple[State, Metrics]],
) -> Callable[[State, Given, Array], tuple[State, Metrics, Array]]:
    """Up to `num_rounds` rounds of one kind: (state, victim, num_rounds) -> (state, sums, played).

    Rounds after one with a metric that is not finite are not played, so that nothing more is
    spent on them.
    """

    def rounds(state: State, victim: Given, num_rounds: Array) -> tuple[State, Metrics, Array]:
        shapes = jax.eval_shape(play, state, victim)[1]
        zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)

        def going_on(carry: tuple[State, Metrics, Array]) -> Array:
            _, sums, played = carry
            finite = jnp.isfinite(jnp.stack(jax.tree.leaves(sums))).all()
            return (played < num_rounds) & finite

        def once(carry: tuple[State, Metrics, Array]) -> tuple[State, Metrics, Array]:
            state, sums, played = carry
            state, metrics = play(state, victim)
            return state, jax.tree.map(jnp.add, sums, metrics), played + 1

        # A dynamic count, so that a short last call compiles nothing new.
        return jax.lax.while_loop(going_on, once, (state, zeros, jnp.int32(0)))

    return rounds


def make_call[State, Given](
    play: Callable[[State, Given], tuple[State, Metrics]], *, looped: bool
) -> jax.stages.Wrapped:
    """Compiles a round: (state, victim, num_rounds) -> (state, metric sums, rounds played).

    The state is donated.

    Args:
      play: (state, victim) -> (state, metrics).
      looped: play `num_rounds` rounds on the device in one call; otherwise a call is one round.
    """

    def one(state: State, victim: Given, num_rounds: Array) -> tuple[State, Metrics, int]:
        del num_rounds
        return *play(state, victim), 1

    return jax.jit(many(play) if looped else one, donate_argnames="state")
