"""What the host adds up during a run and saves with each checkpoint, and lines of the log."""

import dataclasses
import time
from typing import Any

import numpy as np

from disguide_jax.run import evaluate, guard
from disguide_jax.run.loop import Sums

MILESTONES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclasses.dataclass
class Progress:
    """What an extraction's host knows and its device does not."""

    log_bytes: int = 0
    answered: list[int] = dataclasses.field(default_factory=list)  # by class, when last logged
    symptoms: dict[str, int] = dataclasses.field(default_factory=dict)  # see guard.count
    sums: Sums = dataclasses.field(default_factory=Sums)
    max_soft_vote_accuracy: float = 0.0
    queries_to: dict[str, int | None] = dataclasses.field(
        default_factory=lambda: {f"{m:g}": None for m in MILESTONES}
    )
    wall_seconds: float = 0.0
    received: list[int] = dataclasses.field(default_factory=list)  # see Ledger.received
    contents: dict[str, str] = dataclasses.field(default_factory=dict)  # hashes, see config.json

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        """From what a checkpoint holds: `dataclasses.asdict` of one."""
        return cls(**saved | {"sums": Sums(**saved["sums"])})

    def note(self, scores: evaluate.Scores, queries: int) -> None:
        """Keeps the maximum and the first evaluation at which each milestone was reached."""
        accuracy = scores.soft_vote_accuracy
        if not scores.labelled:
            return
        self.max_soft_vote_accuracy = max(self.max_soft_vote_accuracy, accuracy)
        for milestone, reached in self.queries_to.items():
            if reached is None and accuracy >= float(milestone):
                self.queries_to[milestone] = queries

    def answers_line(self, answered: np.ndarray) -> dict[str, Any]:
        """The share of each class among the answers since the last line, if any came."""
        new = answered - np.array(self.answered or [0])
        self.answered = answered.tolist()
        return {"victim/class_share": (new / new.sum()).tolist()} if new.any() else {}

    def judge(self, line: dict[str, Any], policy: str) -> list[str]:
        """The symptoms of a run that is stuck, which the line then names; see guard.py.

        Args:
          line: of the log, which is added to.
          policy: `config.guard`.
        """
        if policy == "off":
            return []
        self.symptoms = guard.count(self.symptoms, line)
        stuck = guard.stuck(self.symptoms)
        if policy == "warn":  # once while it lasts
            stuck = [name for name in stuck if self.symptoms[name] == guard.PATIENCE]
        if stuck:
            line["guard/stuck"] = ", ".join(stuck)
        return stuck


class Clock:
    """The seconds a run has taken, with those before a restart, and its speed."""

    def __init__(self, seconds_before: float, done: int):
        self._start = time.perf_counter() - seconds_before
        self._last = time.perf_counter(), done

    def wall_seconds(self) -> float:
        """Since the run began, without the time it was not running."""
        return time.perf_counter() - self._start

    def line(self, queries: int) -> dict[str, float]:
        """What the log says of time; the speed is that since the line before."""
        (then, queries_then), self._last = self._last, (time.perf_counter(), queries)
        return {
            "time/queries_per_second": (queries - queries_then) / (self._last[0] - then),
            "time/wall_seconds": self.wall_seconds(),
        }
