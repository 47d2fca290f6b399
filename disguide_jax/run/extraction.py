"""One extraction from start to summary. What it leaves in its workdir is listed in the README."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax import paths
from disguide_jax.config import Config
from disguide_jax.core import losses, mesh, pixels, stages
from disguide_jax.core.exchange import make_call
from disguide_jax.core.types import Array, Metrics, Net, Optimizers, Stage, TrainState, Variables
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import atomic
from disguide_jax.files import workdir as workdir_files
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.files.ledger import Spent
from disguide_jax.run import (
    advice,
    asked,
    evaluate,
    guard,
    needs,
    paying,
    pictures,
    recorder,
    refill,
    session,
    signals,
)
from disguide_jax.run import program as programs
from disguide_jax.run import summary as summaries
from disguide_jax.run.loop import CHECKPOINT, EVALUATE, LOG, Call, Happened, Loop
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Clock, Progress
from disguide_jax.victims.paid import Paid

SECONDS_BETWEEN_PICTURES = 60  # at least, until the last one


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
            summary_path.unlink(missing_ok=True)  # of the smaller budget, when extending
            place = Place(workdir, saved, test_set, paid, stop)
            state, scores = play(program, place, state, progress)
            summary = summaries.summarise(program, state, progress, scores, test_set, paid)
        summaries.save_networks(program, state, workdir)
        atomic.write_json(summary_path, summary)
    return summary


class Place(NamedTuple):
    """Where a run is played: an open workdir, and what belongs to it."""

    workdir: pathlib.Path
    saved: Checkpoints
    test_set: evaluate.TestSet
    paid: Paid | None  # the victim behind its ledger, where it is an endpoint
    stop: Sequence[int]  # filled when the run should end


def play(
    program: Program, place: Place, state: TrainState, progress: Progress
) -> tuple[TrainState, evaluate.Scores]:
    """Plays the rounds that are left; logs, evaluates, draws and saves on the way.

    Returns:
      The last state, and the scores of its clones.

    Raises:
      AssertionError: the victim was not sent what the method states that it sends.
    """
    config, stop, saved = program.config, place.stop, place.saved
    start_again = jax.jit(
        functools.partial(programs.restart, program.kit), static_argnames="clones_too"
    )
    with contextlib.closing(Observer(program, place, progress, int(state.round))) as observer:
        loop = Loop(
            make_calls(program, place.paid, int(state.queries)),
            paying.payable_stages(program, place.paid, int(state.queries)),
            functools.partial(event_intervals, config),
            rounds_per_call=config.rounds_per_call,
            state=state,
            sums=progress.sums,
            stop=stop,
        )
        for happened in loop:
            spent = stages.queries_after(program.stages, happened.round)
            observer.shown.advance(spent)
            if not happened.due:
                continue
            check_count(program, loop.state, happened.round, spent)
            stuck = observer.look(happened, loop.state, spent)
            if stuck and config.guard == "restart":
                loop.state = start_again(loop.state, clones_too="agreement" in stuck)
                progress.symptoms = {}
            give_up = bool(stuck) and config.guard == "stop" and not happened.finished
            if CHECKPOINT in happened.due or give_up or stop:
                progress.wall_seconds = observer.clock.wall_seconds()
                progress.log_bytes = observer.log.sync()
                progress.received = place.paid.counts if place.paid else []
                saved.save(loop.state, dataclasses.asdict(progress))
                observer.draw(at_once=happened.finished)
            if give_up:
                saved.wait()
                raise UserError(
                    f"the run is stuck: {guard.explain(stuck)}. It stops after {spent:,} queries, "
                    "and everything is saved. Continue with the same command and "
                    "--config.guard=restart, which makes anew what is stuck, or =warn."
                )
            if stop and not happened.finished:
                saved.wait()
                raise Stopped(stop[0], f"{spent:,} queries")
        saved.wait()
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


def check_count(program: Program, state: TrainState, round_: int, spent: int) -> None:
    """Raises AssertionError if the victim was not sent what the method states."""
    if int(state.queries) != spent:
        raise AssertionError(
            f"round {round_}: the victim was sent {int(state.queries):,} images, but "
            f"{program.method.name} states {spent:,}"
        )


class Observer:
    """What is seen of a run from outside: log, progress, scores, pictures, the guard's verdict.

    Args:
      program: of the run.
      place: where log and pictures go, and what the clones are tested on.
      progress: which is added to.
      num_rounds: done before.
    """

    def __init__(self, program: Program, place: Place, progress: Progress, num_rounds: int):
        self._program, self._place, self._progress = program, place, progress
        workdir, victim = place.workdir, None if place.paid else program.network_victim
        spent = stages.queries_after(program.stages, num_rounds)
        self.clock = Clock(progress.wall_seconds, spent)
        self.log = recorder.MetricsLog(workdir, num_bytes=progress.log_bytes, step=spent)
        self.shown = recorder.Bar(total=program.queries, done=spent)
        self.scores: evaluate.Scores | None = None
        self._evaluate = evaluate.make_evaluate(program.networks.exact_clones, victim)
        self._sample = make_sample(program)
        self._drawn = time.perf_counter()

    def close(self) -> None:
        """Brings the log to the disk."""
        with contextlib.closing(self.shown):
            self.log.close()

    def score(self, state: TrainState) -> evaluate.Scores:
        """The scores of the clones as the attacker takes them."""
        return self._evaluate(self._program.method.result(state), self._place.test_set)

    def look(self, happened: Happened, state: TrainState, spent: int) -> list[str]:
        """Logs and evaluates what is due; returns what the guard finds stuck."""
        stuck: list[str] = []
        if not happened.due & {LOG, EVALUATE}:
            return stuck
        line = {"round": happened.round} | self._stage_line(happened)
        images, sampled = self._sample(state)
        if LOG in happened.due:
            line |= sampled | self._progress.sums.take()
            line |= self._progress.answers_line(jax.device_get(state.answered))
            tx = self._program.kits[happened.stage.name].tx
            line |= rates_line(tx, line, happened.round - happened.first)
            line |= self._program.method.report(state)
            line |= self.clock.line(spent)
            stuck = self._progress.judge(line, self._program.config.guard)
        if EVALUATE in happened.due:
            self.scores = self.score(state)
            line |= evaluate.scores_line(self.scores)
            self._progress.note(self.scores, spent)
            (self._place.workdir / "samples").mkdir(exist_ok=True)
            pictures.save_image_grid(self._place.workdir / "samples" / f"{spent:09}.png", images)
        self.log.write(spent, line)
        self.shown.report(spent, line)
        if stuck:
            self.shown.say(f"guard: {guard.explain(stuck)}, after {spent:,} queries")
        return stuck

    def _stage_line(self, happened: Happened) -> dict[str, Any]:
        if len(self._program.stages) == 1 and happened.stage.queries:
            return {}
        share = (happened.round - happened.first) / happened.stage.num_rounds
        return {"stage": happened.stage.name, "stage/share": share}

    def draw(self, *, at_once: bool) -> None:
        """Draws overview.png, which takes half a second: at once, or not sooner than is due."""
        if at_once or time.perf_counter() - self._drawn > SECONDS_BETWEEN_PICTURES:
            accuracy = evaluate.victim_accuracy(self._place.test_set)
            size = self._program.kit.task.size
            pictures.save_overview(self._place.workdir, victim_accuracy=accuracy, size=size)
            self._drawn = time.perf_counter()


def rates_line(tx: Optimizers, line: dict[str, Any], num_rounds: int) -> dict[str, float]:
    """The learning rates of the last of so many rounds, of the networks that learn in a line."""
    rates = {"gen": tx.generator_rate, "clones": tx.clones_rate}
    return {
        f"{name}/learning_rate": float(np.asarray(rate(num_rounds - 1)))
        for name, rate in rates.items()
        if rate and f"{name}/loss" in line
    }


def make_sample(program: Program) -> Callable[[TrainState], tuple[np.ndarray, dict[str, float]]]:
    """A function from the state to uint8 images of always the same latent vectors.

    Beside them it gives what the guard must see of any method: how saturated they are and, of
    more clones than one, how far these disagree on them.
    """
    several, num = program.config.num_clones > 1, pictures.num_images(program.kit.task.size)

    @jax.jit
    def sample(state: TrainState) -> tuple[Array, Metrics]:
        images = programs.sample_images(program.kit, state, num)
        seen = {"gen/saturation": (jnp.abs(images) > guard.SATURATED).mean()}
        if several:
            clones, net = program.method.result(state), program.networks.exact_clones
            seen["gen/disagreement"] = mean_disagreement(net, clones, images)
        return pixels.encode(images, jnp.dtype(jnp.uint8)), seen

    def on_host(state: TrainState) -> tuple[np.ndarray, dict[str, float]]:
        images, seen = jax.device_get(sample(state))
        return images, {name: float(value) for name, value in seen.items()}

    return on_host


def mean_disagreement(net: Net, clones: Variables, images: Array) -> Array:
    """The clones' mean disagreement on images [N, H, W, channels], in eval mode, []."""
    logits, _ = net.apply(clones, images, train=False)
    return losses.disagreement(jax.nn.softmax(logits)).mean()
