"""Programs that a study needs, run on this machine; cluster.py has a cluster run the same."""

import concurrent.futures
import json
import os
import pathlib
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from disguide_jax.errors import Stopped, UserError
from disguide_jax.run import signals

ROOT = pathlib.Path(__file__).parents[2]


class Run(NamedTuple):
    """One of the runs of a task, of which summary, log and last picture are kept."""

    name: str  # for the user
    workdir: pathlib.Path
    target: pathlib.Path  # where they are kept


class Task(NamedTuple):
    """A program to run, and where what its runs leave is kept."""

    name: str  # for the user
    command: tuple[str, ...]
    folder: pathlib.Path  # of output.txt, what it prints
    runs: tuple[Run, ...] = ()

    @property
    def shown(self) -> str:
        """The command, to be pasted where the project is."""
        return shlex.join(["python", *(word.removeprefix(f"{ROOT}/") for word in self.command[1:])])

    def has_results(self) -> bool:
        """Whether all of its runs have left theirs."""
        kept = [(run.target / "summary.json").exists() for run in self.runs]
        return bool(kept) and all(kept)

    def last_words(self) -> str:
        """The last line that it printed, which says what went wrong."""
        try:
            said = (self.folder / "output.txt").read_text(errors="replace").strip()
        except FileNotFoundError:
            return ""
        return said.splitlines()[-1] if said else ""


class Launcher(Protocol):
    """What sees to tasks."""

    def __call__(
        self, tasks: Sequence[Task], *, watched: bool = False, dry_run: bool = False
    ) -> bool:
        """Runs tasks, or has them run; returns whether all have finished.

        Args:
          tasks: what has not finished; what was begun continues.
          watched: one after the other, seen by who sits there, rather than into output.txt.
          dry_run: only print what would be done.

        Raises:
          UserError: they cannot be run, or one failed; the others have been let finish.
          Stopped: a signal asked for it, and tasks under way have been told.
        """


def local(jobs: int = 1) -> Launcher:
    """A launcher that plays so many tasks at a time on this machine.

    Raises:
      UserError: so many cannot be.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")

    def launch(tasks: Sequence[Task], *, watched: bool = False, dry_run: bool = False) -> bool:
        from disguide_jax.core import backend  # tables need no JAX

        if dry_run:
            for task in tasks:
                print(task.shown)
            return False
        num = 1 if watched else jobs
        environment = os.environ | backend.memory_of_each(num)
        with signals.stop_requests() as stop, concurrent.futures.ThreadPoolExecutor(num) as pool:
            futures = [pool.submit(play, task, stop, environment, watched) for task in tasks]
            failures = [failure for future in futures if (failure := future.result())]
        if stop:
            raise Stopped(stop[0], "what could be finished")
        if failures:
            raise UserError("\n".join(failures) + "\nThe same command again continues.")
        return True

    return launch


def play(
    task: Task, stop: Sequence[int], environment: Mapping[str, str], watched: bool = False
) -> str | None:
    """Runs a task and keeps its results; says what went wrong, if anything did.

    Args:
      task: to run.
      stop: from `signals.stop_requests`; a task is not begun after one, and ends soon at one.
      environment: of the program.
      watched: whether it prints where we do rather than into its output.txt.
    """
    if stop:
        return None
    started = time.monotonic()
    task.folder.mkdir(parents=True, exist_ok=True)
    if watched:
        status = signals.run_child(task.command, stop, env=environment)
    else:
        with (task.folder / "output.txt").open("a") as output:
            streams = {"stdout": output, "stderr": output}
            status = signals.run_child(task.command, stop, env=environment, **streams)
    for name, workdir, target in task.runs:
        if not (workdir / "summary.json").exists():  # one of several, which has not ended
            continue
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(max((workdir / "samples").iterdir()), target / "samples.png")
        for file in ("metrics.jsonl", "summary.json"):  # the summary last: it says "finished"
            shutil.copyfile(workdir / file, target / file)
        accuracy = json.loads((target / "summary.json").read_text())["soft_vote_accuracy"]
        seconds = time.monotonic() - started
        print(f"{name}: soft vote {accuracy:.4f} after {seconds:.0f} s", flush=True)
    if status:
        return f"{task.name}: status {status}: {'' if watched else task.last_words()}"
    return None
