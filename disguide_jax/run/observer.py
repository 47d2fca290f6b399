"""What is seen of a run from outside, and what is done when it is due: log, scores, checkpoints."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from disguide_jax.core import machines, stages
from disguide_jax.core.types import Optimizers, TrainState
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.run import evaluate, guard, pictures, recorder
from disguide_jax.run.compiled import Compiled
from disguide_jax.run.loop import CHECKPOINT, EVALUATE, LOG, Happened
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Clock, Progress
from disguide_jax.victims.paid import Paid

SECONDS_BETWEEN_PICTURES = 60  # at least, until the last one


class Place(NamedTuple):
    """Where a run is played: an open workdir, and what belongs to it."""

    workdir: pathlib.Path
    compiled: Compiled
    saved: Checkpoints
    test_set: evaluate.TestSet
    paid: Paid | None  # the victim behind its ledger, where it is an endpoint
    stop: Sequence[int]  # filled when the run should end
    label: str = ""  # of the run among several


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
        spent = stages.queries_after(program.stages, num_rounds)
        self._clock = Clock(progress.wall_seconds, spent)
        self._log = (
            recorder.MetricsLog(place.workdir, num_bytes=progress.log_bytes, step=spent)
            if machines.is_first()
            else recorder.NoLog()
        )
        self._shown = recorder.Bar(total=program.queries, done=spent, label=place.label)
        self.scores: evaluate.Scores | None = None
        self._drawn = time.perf_counter()

    def close(self) -> None:
        """Brings the log to the disk."""
        with contextlib.closing(self._shown):
            self._log.close()

    def attend(self, happened: Happened, state: TrainState) -> TrainState:
        """Does what is due after some rounds; returns the state to go on with.

        Raises:
          AssertionError: the victim was not sent what the method states that it sends.
          UserError: the run is stuck, and the guard gives it up; it is saved.
          Stopped: a signal asked for it; the run is saved.
        """
        spent = stages.queries_after(self._program.stages, happened.round)
        self._shown.advance(spent)
        if not happened.due:
            return state
        _check_count(self._program, state, happened.round, spent)
        stuck, does = self._look(happened, state, spent), self._program.config.guard
        stop = machines.agreed(self._place.stop)
        if stuck and does == "restart":
            restart = self._place.compiled.restart
            state = machines.done(restart(state, clones_too="agreement" in stuck))
            self._progress.symptoms = {}
        give_up = bool(stuck) and does == "stop" and not happened.finished
        if CHECKPOINT in happened.due or give_up or stop:
            self._save(state)
            self._draw(at_once=happened.finished)
        if give_up:
            self._place.saved.wait()
            raise UserError(
                f"the run is stuck: {guard.explain(stuck)}. It stops after {spent:,} queries, "
                "and everything is saved. Continue with the same command and "
                "--config.guard=restart, which makes anew what is stuck, or =warn."
            )
        if stop and not happened.finished:
            self._place.saved.wait()
            raise Stopped(stop[0], f"{spent:,} queries")
        return state

    def _save(self, state: TrainState) -> None:
        progress = self._progress
        progress.wall_seconds = self._clock.wall_seconds()
        progress.log_bytes = self._log.sync()
        progress.received = self._place.paid.counts if self._place.paid else []
        self._place.saved.save(state, dataclasses.asdict(progress))

    def score(self, state: TrainState) -> evaluate.Scores:
        """The scores of the clones as the attacker takes them."""
        return self._place.compiled.evaluate(
            self._program.method.result(state), self._place.test_set
        )

    def _look(self, happened: Happened, state: TrainState, spent: int) -> list[str]:
        """Logs and evaluates what is due; returns what the guard finds stuck."""
        stuck: list[str] = []
        if not happened.due & {LOG, EVALUATE}:
            return stuck
        line = {"round": happened.round} | self._stage_line(happened)
        images, sampled = self._place.compiled.sample(state)
        if LOG in happened.due:
            line |= sampled | self._progress.sums.take()
            line |= self._progress.answers_line(jax.device_get(state.answered))
            tx = self._program.kits[happened.stage.name].tx
            line |= rates_line(tx, line, happened.round - happened.first)
            line |= self._program.method.report(state)
            line |= self._clock.line(spent)
            stuck = self._progress.judge(line, self._program.config.guard)
        if EVALUATE in happened.due:
            self.scores = self.score(state)
            line |= evaluate.scores_line(self.scores)
            self._progress.note(self.scores, spent)
            if machines.is_first():
                folder = self._place.workdir / "samples"
                folder.mkdir(exist_ok=True)
                pictures.save_image_grid(folder / f"{spent:09}.png", images)
        self._log.write(spent, line)
        self._shown.report(spent, line)
        if stuck:
            self._shown.say(f"guard: {guard.explain(stuck)}, after {spent:,} queries")
        return stuck

    def _stage_line(self, happened: Happened) -> dict[str, Any]:
        if len(self._program.stages) == 1 and happened.stage.queries:
            return {}
        share = (happened.round - happened.first) / happened.stage.num_rounds
        return {"stage": happened.stage.name, "stage/share": share}

    def _draw(self, *, at_once: bool) -> None:
        """Draws overview.png, which takes half a second: at once, or not sooner than is due."""
        since = time.perf_counter() - self._drawn
        if machines.is_first() and (at_once or since > SECONDS_BETWEEN_PICTURES):
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


def _check_count(program: Program, state: TrainState, round_: int, spent: int) -> None:
    """Raises AssertionError if the victim was not sent what the method states."""
    if int(state.queries) != spent:
        raise AssertionError(
            f"round {round_}: the victim was sent {int(state.queries):,} images, but "
            f"{program.method.name} states {spent:,}"
        )
