"""Runs that differ in their seeds alone, played by one program at once."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from disguide_jax.core import seeds
from disguide_jax.core.exchange import make_call
from disguide_jax.core.types import Array, Metrics, TrainState
from disguide_jax.errors import Stopped, UserError
from disguide_jax.run import extraction, needs
from disguide_jax.run import program as programs
from disguide_jax.run.compiled import compiled
from disguide_jax.run.extraction import Order
from disguide_jax.run.loop import Happened, Loop, Sums
from disguide_jax.run.observer import Observer, Place
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Progress


class Ended(NamedTuple):
    """How runs ended, by their workdirs."""

    summaries: dict[pathlib.Path, dict[str, Any]]
    failures: dict[pathlib.Path, UserError]

    def has(self, order: Order) -> bool:
        """Whether a run is among them."""
        return order.workdir in self.summaries or order.workdir in self.failures

    def fail(self, order: Order, error: UserError) -> None:
        """Notes, and says, that a run has failed."""
        print(f"{order.label}: {error}", flush=True)
        self.failures[order.workdir] = error


class Member(NamedTuple):
    """One of several runs, where it stands."""

    order: Order
    program: Program  # with its own seed
    place: Place
    state: TrainState
    progress: Progress


class FailuresError(Exception):
    """Runs cannot go on, while others could; `errors` by their position."""

    def __init__(self, errors: dict[int, UserError]):
        super().__init__(errors)
        self.errors = errors


class SumsOfAll(Sums):
    """The metrics of several runs, [S] each, added up for each of them."""

    def __init__(self, each: Sequence[Sums]):
        super().__init__()
        self._each = each

    def add(self, round_before: int, sums: Metrics, played: Array | int) -> None:
        """Adds the metrics of one call.

        Raises:
          FailuresError: of the runs of which one is not finite.
        """
        sums, played = jax.device_get((sums, played))
        errors = {}
        for i, one in enumerate(self._each):
            try:
                one.add(round_before, {name: value[i] for name, value in sums.items()}, played)
            except UserError as error:
                errors[i] = error
        if errors:
            raise FailuresError(errors)


def play(orders: Sequence[Order], stop: Sequence[int], ended: Ended, *, extend: bool) -> None:
    """Plays runs to their end, at once those that have played as many rounds.

    When one fails the others go on from their last checkpoints: the program stops for all of
    them at a metric of one that is not finite.

    Args:
      orders: of the runs, of which each has rounds left.
      stop: filled when they should end.
      ended: is added to.
      extend: accept a larger budget.

    Raises:
      Stopped: a signal asked for it; the runs are saved.
    """
    left = list(orders)
    while left:
        with contextlib.ExitStack() as stack:
            members = _begin(left, stop, ended, stack)
            least = min((int(member.state.round) for member in members), default=0)
            members = [member for member in members if int(member.state.round) == least]
            try:
                if members:
                    _play(members, stop, ended)
            except FailuresError as failures:
                for i, error in failures.errors.items():
                    ended.fail(members[i].order, error)
        left = [
            extraction.look_up(order.config, order.workdir, extend=extend, label=order.label)
            for order in left
            if not ended.has(order)
        ]


def _begin(
    orders: Sequence[Order], stop: Sequence[int], ended: Ended, stack: contextlib.ExitStack
) -> list[Member]:
    """Opens the workdirs of runs; of those that cannot be begun it notes why."""
    program = programs.build(orders[0].config)
    functions = compiled(program)
    needs.check_fits(program, orders[0].workdir, num_seeds=len(orders))
    members = []
    for order in orders:
        own = extraction.with_seed_of(order, program)
        if own is None:  # begun elsewhere, with other choices; a program of its own comes later
            continue
        try:
            place, state, progress = stack.enter_context(
                extraction.begun(own, functions, order, stop)
            )
        except UserError as error:
            ended.fail(order, error)
        else:
            members.append(Member(order, own, place, state, progress))
    return members


def _play(members: Sequence[Member], stop: Sequence[int], ended: Ended) -> None:
    """Plays the rounds that are left of runs that have played as many.

    Raises:
      FailuresError: some cannot go on.
      Stopped: a signal asked for it; they are saved.
    """
    program, place = members[0].program, members[0].place
    print(needs.describe(program, place.test_set, members[0].order.workdir))
    labels = ", ".join(member.order.label for member in members)
    print(f"together   {labels}: one program, each in a workdir of its own", flush=True)
    for member in members:
        if queries := int(member.state.queries):
            print(f"{member.order.label} continues after {queries:,} queries", flush=True)
    looped = program.config.rounds_per_call > 1
    rounds = {
        stage.name: make_call(seeds.over(program.call(stage)), looped=looped)
        for stage in program.stages
    }
    with contextlib.ExitStack() as stack:
        observers = [
            stack.enter_context(
                contextlib.closing(Observer(m.program, m.place, m.progress, int(m.state.round)))
            )
            for m in members
        ]
        state = seeds.stack([member.state for member in members])
        for member in members:  # whose states someone still holds
            jax.tree.map(lambda x: x.delete(), member.state)
        loop = Loop(
            extraction.against_network(program, rounds),
            program.stages,
            functools.partial(extraction.event_intervals, program.config),
            rounds_per_call=program.config.rounds_per_call,
            state=state,
            sums=SumsOfAll([member.progress.sums for member in members]),
            stop=stop,
        )
        del state
        for happened in loop:
            loop.state = _attend(observers, happened, loop.state)
        for i, (member, observer) in enumerate(zip(members, observers, strict=True)):
            member.place.saved.wait()
            one = seeds.take(loop.state, i)
            scores = observer.scores or observer.score(one)
            ended.summaries[member.order.workdir] = extraction.conclude(
                member.program, member.place, member.order, one, member.progress, scores
            )


def _attend(observers: Sequence[Observer], happened: Happened, state: TrainState) -> TrainState:
    """Does what is due in each run; raises what one of them raises when all have been seen to."""
    errors: dict[int, UserError] = {}
    stopped: Stopped | None = None
    for i, observer in enumerate(observers):
        before = seeds.take(state, i) if happened.due else state
        try:
            after = observer.attend(happened, before)
        except UserError as error:
            errors[i] = error
        except Stopped as error:
            stopped = error
        else:
            if after is not before:
                state = seeds.put(state, i, after)
    if errors:
        raise FailuresError(errors)
    if stopped:
        raise stopped
    return state
