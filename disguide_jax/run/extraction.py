"""One extraction from start to summary. What it leaves in its workdir is listed in the README."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from disguide_jax import paths
from disguide_jax.config import Config, to_dict
from disguide_jax.core import machines, mesh
from disguide_jax.core.types import Stage, TrainState
from disguide_jax.errors import UserError
from disguide_jax.files import atomic
from disguide_jax.files import workdir as workdir_files
from disguide_jax.files.ledger import Spent
from disguide_jax.run import (
    advice,
    asked,
    evaluate,
    needs,
    paying,
    processes,
    refill,
    session,
    signals,
)
from disguide_jax.run import program as programs
from disguide_jax.run import summary as summaries
from disguide_jax.run.compiled import Compiled, FunctionsOf, compiled, trade_with
from disguide_jax.run.loop import CHECKPOINT, EVALUATE, LOG, Call, Loop
from disguide_jax.run.observer import Observer, Place
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Progress
from disguide_jax.victims.paid import Paid


class Order(NamedTuple):
    """A run that is asked for, and what its workdir knows of it."""

    config: Config  # with what was chosen when the run began
    workdir: pathlib.Path
    contents: workdir_files.Hashes  # of what the run is given
    places: dict[str, str]  # what was hashed, for messages
    started: dict[str, Any] | None  # what config.json holds, None in a new workdir
    label: str = ""  # of the run among several, with which its lines begin

    @property
    def summary_path(self) -> pathlib.Path:
        """Where the result goes."""
        return self.workdir / "summary.json"

    def finished(self) -> dict[str, Any] | None:
        """What `summary.json` holds, said to the user, too; None if rounds are left."""
        budget = self.started and self.started["config"]["query_budget"]
        if budget != self.config.query_budget or not self.summary_path.exists():
            return None
        print(f"{self.workdir} is finished: see {self.summary_path}. Nothing to do.")
        return json.loads(self.summary_path.read_text())


def train_and_evaluate(
    config: Config,
    workdir: pathlib.Path,
    *,
    extend: bool = False,
    functions_of: FunctionsOf = compiled,
) -> dict[str, Any]:
    """Runs an extraction, or continues the one that `workdir` holds, to its summary.

    Args:
      config: of the run.
      workdir: made if absent. A finished one is left as it is.
      extend: accept a larger budget than the workdir was started with.
      functions_of: `compiled`, or one that shares them.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: a mistake in the configuration, the files or the machine; the workdir holds
        nothing new that looks like a result.
      Stopped: a signal asked for it; the run is saved.
    """
    order = look_up(config, workdir, extend=extend)
    summary = order.finished()
    if summary is not None:
        return summary
    with mesh.use(jax.devices()[: order.config.devices]):
        program = programs.build(order.config)
        try:
            with signals.stop_requests() as stop:
                return run(program, functions_of(program), order, stop)
        except Spent:
            print("What was sent more than once leaves less for the last rounds.", flush=True)
            return train_and_evaluate(config, workdir, extend=extend, functions_of=functions_of)


def look_up(
    config: Config, workdir: pathlib.Path, *, extend: bool = False, label: str = ""
) -> Order:
    """What a workdir knows of a run that is asked for.

    Args:
      config: of the run.
      workdir: that may hold it.
      extend: accept a larger budget than the workdir was started with.
      label: of the run among several.

    Raises:
      UserError: the configuration is wrong, or the workdir holds another run.
    """
    workdir, num_devices = paths.expanded(workdir), programs.resolve(config).devices
    contents, places = asked.contents_of(config), asked.places_of(config)
    config, started = session.take_up(workdir, config, contents, places, extend=extend)
    config = dataclasses.replace(config, devices=num_devices)
    processes.check(programs.resolve(config), workdir, contents, started)
    return Order(config, workdir, contents, places, started, label)


def with_seed_of(order: Order, program: Program) -> Program | None:
    """The same program for another run; None if that differs in more than its seed."""
    chosen = {"config": to_dict(program.config)}
    config = workdir_files.adopt(programs.resolve(order.config), chosen)
    if config != dataclasses.replace(program.config, seed=config.seed):
        return None
    return program._replace(config=config)


def run(program: Program, functions: Compiled, order: Order, stop: Sequence[int]) -> dict[str, Any]:
    """Begins or continues a run, and says how it ended; returns what `summary.json` holds.

    Raises:
      Spent: an endpoint was sent so much more than once that the rounds that were planned cannot
        be paid for. What was answered is in the ledger, and whoever continues plans anew.
      UserError: see `train_and_evaluate`.
    """
    needs.check_fits(program, order.workdir)
    with begun(program, functions, order, stop) as (place, state, progress):
        print(needs.describe(program, place.test_set, order.workdir), flush=True)
        if int(state.round):
            print(f"continues after {int(state.queries):,} queries", flush=True)
        state, scores = play(program, place, state, progress)
        return conclude(program, place, order, state, progress, scores)


@contextlib.contextmanager
def begun(
    program: Program, functions: Compiled, order: Order, stop: Sequence[int]
) -> Iterator[tuple[Place, TrainState, Progress]]:
    """The open workdir of a run, and where the run stands.

    Raises:
      UserError: see `train_and_evaluate`.
    """
    config, workdir = program.config, order.workdir
    with session.opened(workdir, replay_too=not refill.is_needed(config)) as saved:
        restored = saved.restore(program.template)
        if restored is None:
            state = machines.done(functions.start(jax.random.key(config.seed)))
            progress = Progress(contents=order.contents)
        else:
            state, progress = restored[0], Progress.from_dict(restored[1])
            workdir_files.refuse_other_contents(
                progress.contents, order.contents, order.places, workdir
            )
        with paying.opened(program, workdir, progress.received, stop) as paid:
            state = refill.refill(program, state, paid)
            if machines.is_first():
                workdir_files.write_started(workdir, config, order.contents, order.started)
            try:
                test_set = paying.make_test_set(program, paid)
            except UserError:
                if order.started is None and paid and not paid.has_answered:
                    (workdir / "config.json").unlink()  # it may have been the wrong endpoint
                raise
            if machines.is_first():  # of the smaller budget, when extending
                order.summary_path.unlink(missing_ok=True)
            place = Place(workdir, functions, saved, test_set, paid, stop, order.label)
            yield place, state, progress


def conclude(
    program: Program,
    place: Place,
    order: Order,
    state: TrainState,
    progress: Progress,
    scores: evaluate.Scores,
) -> dict[str, Any]:
    """Writes the networks and the summary of a run that has ended, and says what it holds."""
    summary = summaries.summarise(program, state, progress, scores, place.test_set, place.paid)
    if machines.is_first():
        summaries.save_networks(program, state, order.workdir)
        atomic.write_json(order.summary_path, summary)
    machines.meet()
    if order.label:
        print(f"{order.label} has ended", flush=True)
    print(summaries.report(summary), flush=True)
    if program.config.guard != "off":
        log = workdir_files.read_log(order.workdir)
        for hint in advice.advise(log, program.method.ignores):
            print(f"hint       {hint}", flush=True)
    return summary


def play(
    program: Program, place: Place, state: TrainState, progress: Progress
) -> tuple[TrainState, evaluate.Scores]:
    """Plays the rounds that are left, and does what is due on the way.

    Returns:
      The last state, and the scores of its clones.

    Raises:
      UserError: the guard gives the run up, or a metric is not finite.
      Stopped: a signal asked for it; the run is saved.
    """
    at_once = 1 if place.compiled.around_victim else program.config.rounds_per_call
    with contextlib.closing(Observer(program, place, progress, int(state.round))) as observer:
        loop = Loop(
            make_calls(program, place.compiled, place.paid, int(state.queries)),
            paying.payable_stages(program, place.paid, int(state.queries)),
            functools.partial(event_intervals, program.config),
            rounds_per_call=at_once,
            state=state,
            sums=progress.sums,
            stop=place.stop if machines.count() == 1 else (),  # others: see machines.agreed
        )
        for happened in loop:
            loop.state = observer.attend(happened, loop.state)
        place.saved.wait()
        # All rounds may have been played, and saved, before.
        return loop.state, observer.scores or observer.score(loop.state)


def make_calls(
    program: Program, functions: Compiled, paid: Paid | None, num_queries: int
) -> dict[str, Call[TrainState]]:
    """Rounds of every stage, by its name, with the victim.

    Args:
      program: of the run.
      functions: of the run.
      paid: the victim, where it is an endpoint.
      num_queries: training images that were sent before.
    """
    if not functions.around_victim:
        return against_network(program, functions.rounds)
    if paid is None:
        trade = trade_with(program.network_victim)
    else:
        trade = paying.make_trade(paid, num_queries)

    def around(play: Callable[..., Any]) -> Call[TrainState]:
        return lambda state, num_rounds: (*play(state, trade), 1)

    return {name: around(play) for name, play in functions.rounds.items()}


def against_network(
    program: Program, rounds: Mapping[str, Callable[..., Any]]
) -> dict[str, Call[TrainState]]:
    """Compiled rounds with the run's victim, whose weights are at hand."""

    def against(play: Callable[..., Any]) -> Call[TrainState]:
        return lambda state, num_rounds: play(state, program.network_victim, num_rounds)

    return {name: against(play) for name, play in rounds.items()}


def event_intervals(config: Config, stage: Stage) -> dict[str, int]:
    """Rounds between two events; where rounds send nothing, a batch made counts as one sent."""
    in_round = stage.queries or config.batch_size
    return {
        LOG: max(1, config.log_every_queries // in_round),
        EVALUATE: max(1, config.evaluate_every_queries // in_round),
        CHECKPOINT: max(1, config.checkpoint_every_queries // in_round),
    }
