"""One extraction from start to summary. What it leaves in its workdir is listed in the README."""

import contextlib
import functools
import json
import pathlib
from typing import Any

import jax

from disguide_jax import paths
from disguide_jax.config import Config
from disguide_jax.core import machines, mesh
from disguide_jax.core.exchange import make_call
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
from disguide_jax.run.loop import CHECKPOINT, EVALUATE, LOG, Call, Loop
from disguide_jax.run.observer import Observer, Place
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Progress
from disguide_jax.victims.paid import Paid


def train_and_evaluate(
    config: Config, workdir: pathlib.Path, *, extend: bool = False
) -> dict[str, Any]:
    """Runs an extraction, or continues the one that `workdir` holds, to its summary.

    Args:
      config: of the run.
      workdir: made if absent. A finished one is left as it is.
      extend: accept a larger budget than the workdir was started with.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: a mistake in the configuration, the files or the machine; the workdir holds
        nothing new that looks like a result.
      Stopped: a signal asked for it; the run is saved.
    """
    workdir = paths.expanded(workdir)
    summary_path = workdir / "summary.json"
    num_devices = programs.resolve(config).devices
    contents, places = asked.contents_of(config), asked.places_of(config)
    config, started = session.take_up(workdir, config, contents, places, extend=extend)
    processes.check(programs.resolve(config), workdir, contents, started)
    if (
        started
        and summary_path.exists()
        and started["config"]["query_budget"] == config.query_budget
    ):
        print(f"{workdir} is finished: see {summary_path}. Nothing to do.")
        return json.loads(summary_path.read_text())

    with mesh.use(mesh.make(jax.devices()[:num_devices])):
        program = programs.build(config)
        needs.check_fits(program, workdir)
        try:
            summary = run(program, workdir, contents, places, started)
        except Spent:
            print("What was sent more than once leaves less for the last rounds.", flush=True)
            return train_and_evaluate(config, workdir, extend=extend)
    print(summaries.report(summary), flush=True)
    if config.guard != "off":
        for hint in advice.advise(workdir_files.read_log(workdir)):
            print(f"hint       {hint}", flush=True)
    return summary


def run(
    program: Program,
    workdir: pathlib.Path,
    contents: workdir_files.Hashes,
    places: dict[str, str],
    started: dict[str, Any] | None,
) -> dict[str, Any]:
    """Begins or continues in a workdir; returns what `summary.json` holds.

    Raises:
      Spent: an endpoint was sent so much more than once that the rounds that were planned cannot
        be paid for. What was answered is in the ledger, and whoever continues plans anew.
      UserError: see `train_and_evaluate`.
    """
    summary_path = workdir / "summary.json"
    replay_too = not refill.is_needed(program.config)
    with (
        session.opened(workdir, replay_too=replay_too) as saved,
        signals.stop_requests() as stop,
    ):
        restored = saved.restore(program.template)
        if restored is None:
            state, progress = programs.start(program), Progress(contents=contents)
        else:
            state, progress = restored[0], Progress.from_dict(restored[1])
            workdir_files.refuse_other_contents(progress.contents, contents, places, workdir)
        with paying.opened(program, workdir, progress.received, stop) as paid:
            state = refill.refill(program, state, paid)
            if machines.is_first():
                workdir_files.write_started(workdir, program.config, contents, started)
            try:
                test_set = paying.make_test_set(program, paid)
            except UserError:
                if started is None and paid and not paid.has_answered:
                    (workdir / "config.json").unlink()  # it may have been the wrong endpoint
                raise
            print(needs.describe(program, test_set, workdir), flush=True)
            if restored is not None:
                print(f"continues after {int(state.queries):,} queries", flush=True)
            if machines.is_first():  # of the smaller budget, when extending
                summary_path.unlink(missing_ok=True)
            place = Place(workdir, saved, test_set, paid, stop)
            state, scores = play(program, place, state, progress)
            summary = summaries.summarise(program, state, progress, scores, test_set, paid)
        if machines.is_first():
            summaries.save_networks(program, state, workdir)
            atomic.write_json(summary_path, summary)
        machines.meet()
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
    with contextlib.closing(Observer(program, place, progress, int(state.round))) as observer:
        loop = Loop(
            make_calls(program, place.paid, int(state.queries)),
            paying.payable_stages(program, place.paid, int(state.queries)),
            functools.partial(event_intervals, program.config),
            rounds_per_call=program.config.rounds_per_call,
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
    program: Program, paid: Paid | None, num_queries: int
) -> dict[str, Call[TrainState]]:
    """Compiled rounds of every stage, by its name, with the victim.

    Args:
      program: of the run.
      paid: the victim, where it is an endpoint.
      num_queries: training images that were sent before.
    """

    def of_network(stage: Stage) -> Call[TrainState]:
        looped = program.config.rounds_per_call > 1
        call = make_call(program.call(stage), looped=looped)
        return lambda state, num_rounds: call(state, program.network_victim, num_rounds)

    if paid is None:
        return {stage.name: of_network(stage) for stage in program.stages}
    trade = paying.make_trade(paid, num_queries)

    def of_endpoint(stage: Stage) -> Call[TrainState]:
        round_ = program.drive(stage)
        return lambda state, num_rounds: (*round_(state, trade), 1)

    return {stage.name: of_endpoint(stage) for stage in program.stages}


def event_intervals(config: Config, stage: Stage) -> dict[str, int]:
    """Rounds between two events; where rounds send nothing, a batch made counts as one sent."""
    in_round = stage.queries or config.batch_size
    return {
        LOG: max(1, config.log_every_queries // in_round),
        EVALUATE: max(1, config.evaluate_every_queries // in_round),
        CHECKPOINT: max(1, config.checkpoint_every_queries // in_round),
    }
