"""What a run writes for people and programs to read: lines, events, the progress."""

import contextlib
import json
import pathlib
import sys
import time
from typing import Any

import tqdm
from tensorboardX import record_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from disguide_jax.core import machines
from disguide_jax.errors import UserError
from disguide_jax.files import atomic


class MetricsLog:
    """`metrics.jsonl` and its copy for TensorBoard, continued across restarts.

    Args:
      workdir: where `metrics.jsonl` and `tb/` are.
      num_bytes: how much of an existing file is kept: what was written up to the checkpoint
        that the run continues from. Later lines will be written again.
      step: of that checkpoint; TensorBoard hides later points.
      axis: what steps are, the first key of each line.

    Raises:
      UserError: the file is shorter than that.
    """

    def __init__(self, workdir: pathlib.Path, *, num_bytes: int, step: int, axis: str = "queries"):
        self._axis = axis
        path = workdir / "metrics.jsonl"
        length = path.stat().st_size if path.exists() else 0
        if length < num_bytes:
            raise UserError(
                f"{path} has {length:,} bytes, but {num_bytes:,} were written before the last "
                "checkpoint: it was deleted or cut. Bring it back from a copy, or choose another "
                "--workdir. The checkpoints are untouched."
            )
        self._file = path.open("ab", buffering=0)
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)
        (workdir / "tb").mkdir(exist_ok=True)
        # Not SummaryWriter, whose thread prints tracebacks when the disk is full.
        path = workdir / "tb" / f"events.out.tfevents.{time.time():.6f}"
        self._events = record_writer.RecordWriter(str(path))
        start = SessionLog(status=SessionLog.START)
        self._add_event(step=step + 1, file_version="brain.Event:2")
        self._add_event(step=step + 1, session_log=start)

    def sync(self) -> int:
        """Brings what was written to the disk, before a checkpoint counts it.

        Returns:
          The length of `metrics.jsonl` in bytes.
        """
        atomic.flush(self._file)
        return self._file.tell()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends one line: numbers, lists of numbers, and names, which TensorBoard is spared."""
        line = json.dumps({self._axis: step} | metrics, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        for name, value in metrics.items():
            if isinstance(value, list):
                for i, item in enumerate(value):
                    self._add_event(step=step, summary=summary.scalar(f"{name}_{i}", item))
            elif not isinstance(value, str):
                self._add_event(step=step, summary=summary.scalar(name, value))
        self._events.flush()

    def _add_event(self, **content: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        """Brings what was written to the disk."""
        with contextlib.closing(self._file), contextlib.closing(self._events):
            atomic.flush(self._file)


class NoLog:
    """What stands for the log in all processes of a run but the first."""

    def sync(self) -> int:
        """The length of nothing."""
        return 0

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Leaves the line to the first process."""

    def close(self) -> None:
        """There is nothing to bring to the disk."""


class Bar:
    """A bar on a terminal, plain lines elsewhere: how far a run is, its speed, how well it goes.

    Args:
      total: of the units at the end.
      done: of them before.
      unit: what is counted.
      label: what lines begin with, where several runs are seen.
    """

    def __init__(self, *, total: int, done: int, unit: str = "query", label: str = ""):
        self._label = f"{label}: " if label else ""
        self._bar = tqdm.tqdm(
            total=total,
            initial=done,
            unit=unit,
            desc=label or None,
            unit_scale=True,
            smoothing=0.1,
            dynamic_ncols=True,
            disable=not (sys.stderr.isatty() and machines.is_first()),
        )
        self._accuracy = ""

    def advance(self, done: int) -> None:
        """Moves the bar to so many units."""
        self._bar.update(done - self._bar.n)

    def show(self, parts: list[str], tail: str) -> None:
        """Parts beside the bar, or in a line of their own, with a tail, where there is none."""
        if self._bar.disable:
            print(*parts, tail, sep=", ", flush=True)
        else:
            self._bar.set_postfix_str(", ".join(parts))

    def report(self, queries: int, metrics: dict[str, Any]) -> None:
        """Says how it goes; a line of its own where there is no bar."""
        if "eval/soft_vote_accuracy" in metrics:
            self._accuracy = f"soft vote {metrics['eval/soft_vote_accuracy']:.4f}"
        stage = ""
        if "stage" in metrics:
            stage = f"{metrics['stage']} {metrics['stage/share']:.0%}"
        if "choice/agreement" in metrics:
            stage += f", choice {metrics['choice/decay']:g} ({metrics['choice/agreement']:.4f})"
        said = [*filter(None, [stage, self._accuracy])]
        self._bar.set_postfix_str(", ".join(said))
        if not self._bar.disable:
            return
        rate = metrics.get("time/queries_per_second")
        parts = [f"{self._label}{queries:,} of {self._bar.total:,} queries"]
        if rate:
            left = _duration((self._bar.total - queries) / rate)
            parts += [f"{rate:,.0f} queries/s", f"{left} left"]
        print(*parts, *said, sep=", ", flush=True)

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._bar.write(f"{self._label}{message}")
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
