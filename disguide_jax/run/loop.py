"""The loop of every training: rounds are played, and what has happened is yielded.

Whoever iterates logs, evaluates, draws and saves. One call is always under way on the device
while the host looks at the metrics of the one before. Events fall on multiples of their
interval, counted from the stage's first round, and on its last, so that a run that was
interrupted has them where one that was not has them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from disguide_jax.core import machines, stages
from disguide_jax.core.types import Array, Metrics, Stage
from disguide_jax.errors import UserError

type Call[State] = Callable[[State, int], tuple[State, Metrics, Array | int]]
"""A state, and rounds to play -> the state, sums of the metrics, rounds played."""

LOG, EVALUATE, CHECKPOINT = "log", "evaluate", "checkpoint"


class Happened(NamedTuple):
    """Rounds have been played, and some events are due after them."""

    round: int  # rounds done since the run began
    stage: Stage
    first: int  # the stage's first round
    due: frozenset[str]  # of LOG, EVALUATE, CHECKPOINT
    finished: bool  # this was the last round of all


@dataclasses.dataclass
class Sums:
    """Metrics added up over the rounds since the last line of the log."""

    values: dict[str, float] = dataclasses.field(default_factory=dict)
    rounds: int = 0

    def add(self, round_before: int, sums: Metrics, played: Array | int) -> None:
        """Adds the metrics of one call.

        Raises:
          UserError: one of them is not finite; names the round and the metric.
        """
        sums, played = jax.device_get((sums, played))
        for name, value in sums.items():
            if not np.isfinite(value):
                raise UserError(
                    f"round {round_before + int(played)}: {name} is {value}. The run stops; the "
                    "last checkpoint is from before and stays usable. A smaller learning rate "
                    "may help, in a new --workdir."
                )
            self.values[name] = self.values.get(name, 0.0) + float(value)
        self.rounds += int(played)

    def take(self) -> dict[str, float]:
        """The averages over the rounds; the next ones begin anew."""
        averages = {name: value / self.rounds for name, value in self.values.items()}
        self.values, self.rounds = {}, 0
        return averages


class HasRound(Protocol):
    """What the loop must know of a state."""

    @property
    def round(self) -> Array:
        """Rounds done, []."""


class Loop[State: HasRound]:
    """Iterating plays the rounds that are left; `state` may be replaced where it stands.

    Args:
      calls: compiled rounds, by the name of their stage. They are given the state to keep.
      run: all stages.
      every: a stage -> rounds between two events, by their names.
      rounds_per_call: at most; 1 where loops on the device are slow.
      state: after the rounds in which it says that it stands.
      sums: of the line of the log that has begun.
      stop: filled by someone else when the loop should save and end.
    """

    def __init__(
        self,
        calls: Mapping[str, Call[State]],
        run: tuple[Stage, ...],
        every: Callable[[Stage], Mapping[str, int]],
        *,
        rounds_per_call: int,
        state: State,
        sums: Sums,
        stop: Sequence[int],
    ):
        self.state = state
        self._calls, self._run, self._every = calls, run, every
        self._rounds_per_call, self._sums, self._stop = rounds_per_call, sums, stop

    def __iter__(self) -> Iterator[Happened]:
        round_, total = int(self.state.round), stages.total(self._run)
        # Round before the call, and what it returned.
        under_way: list[tuple[int, Metrics, Array | int]] = []
        while round_ < total:
            stage, first = stages.stage_at(self._run, round_)
            every, last = self._every(stage), first + stage.num_rounds
            until = round_ + 1
            if self._rounds_per_call > 1:
                intervals = (*every.values(), self._rounds_per_call)
                until = min(last, *(first + ((round_ - first) // n + 1) * n for n in intervals))
            called = self._calls[stage.name](self.state, until - round_)
            self.state, sums, played = machines.done(called)
            under_way.append((round_, sums, played))
            if len(under_way) > 1:
                self._sums.add(*under_way.pop(0))
            round_ = until
            due = {e for e, n in every.items() if (round_ - first) % n == 0 or round_ == last}
            if self._stop:
                due.add(CHECKPOINT)
            if due:
                while under_way:
                    self._sums.add(*under_way.pop(0))
            yield Happened(round_, stage, first, frozenset(due), finished=round_ == total)
