"""Programs that a study needs, run by Slurm, through submitit.

The id of a task's job is kept in the task's folder as `job.txt`, and Slurm is asked for its state:
the same command again submits only what is neither finished nor under way. It needs what
pip install 'disguide_jax[cluster]' brings.
"""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from disguide_jax.errors import UserError, listed
from disguide_jax.run import signals
from disguide_jax.study import launch

LAUNCHERS = ("local", "slurm")
PROGRAMS = ("sbatch", "squeue", "srun", "scontrol")
OTHERWISE = {  # parameters of submitit that are said in another way
    "array_parallelism": "--jobs says it",
    "nodes": "a run is one process",
    "tasks_per_node": "a run is one process",
    "ntasks_per_node": "a run is one process",
    "time": "timeout_min says it, in minutes",
}
MOST_TIMEOUTS = 100  # of one job, each of which is saved and continued, before it is given up


def choose(
    launcher: str, *, jobs: int | None, slurm: Sequence[str], folder: pathlib.Path
) -> launch.Launcher:
    """The launcher that a command line asks for.

    Args:
      launcher: of LAUNCHERS.
      jobs: tasks at a time; None is 1 on this machine, and on a cluster as many as it lets.
      slurm: submitit's parameters, each as KEY=VALUE.
      folder: where submitit has its files, on a disk that all machines of the cluster see.

    Raises:
      UserError: a parameter is wrong, or what it needs is not here.
    """
    if launcher == "slurm":
        return Slurm(folder, jobs, read_parameters(slurm))
    if slurm:
        raise UserError(f"--slurm {' '.join(slurm)} is only for --launcher slurm")
    return launch.local(1 if jobs is None else jobs)


def read_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Parameters from KEY=VALUE, values as in JSON, or else text.

    Raises:
      UserError: one cannot be, or the time that a job may take is not among them.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UserError(f"--slurm {pair}: write KEY=VALUE, such as partition=gpu")
        if key in OTHERWISE:
            raise UserError(f"--slurm {pair}: {OTHERWISE[key]}")
        try:
            parameters[key] = json.loads(text)
        except ValueError:
            parameters[key] = text
    minutes = parameters.get("timeout_min")
    if type(minutes) is not int or minutes < 1:
        raise UserError(
            f"--slurm: timeout_min is {minutes}; say how many minutes a job may take, each "
            "parameter by itself: --slurm timeout_min=1440 partition=gpu gpus_per_node=1"
        )
    return parameters


class Slurm:
    """A launcher that submits what is not under way as one array job."""

    def __init__(self, folder: pathlib.Path, jobs: int | None, parameters: Mapping[str, Any]):
        if jobs is not None and jobs < 1:
            raise UserError(f"--jobs is {jobs}; it must be at least 1")
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "--launcher slurm needs submitit: pip install 'disguide_jax[cluster]'"
            ) from error
        if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise UserError(
                f"--launcher slurm: there is no Slurm here, {', '.join(absent)} not found; "
                "give the command on a machine from which jobs are submitted"
            )
        self._shown = " ".join(f"{key}={value}" for key, value in parameters.items())
        self._jobs = jobs
        self._executor = submitit.AutoExecutor(
            folder, cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS
        )
        told = {"name": "disguide", "array_parallelism": jobs, **parameters}
        more = {"requeue": True, **told.pop("additional_parameters", {})}  # after a preemption
        told = {f"slurm_{key}": value for key, value in told.items() if value is not None}
        try:
            self._executor.update_parameters(slurm_additional_parameters=more, **told)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"--slurm {self._shown}: {error}") from error

    def __call__(
        self, tasks: Sequence[launch.Task], *, watched: bool = False, dry_run: bool = False
    ) -> bool:
        """Submits what is neither finished nor under way; see `launch.Launcher`."""
        del watched  # by nobody
        ids = {task: job.read_text().strip() for task in tasks if (job := _job(task)).exists()}
        states = _states() if ids else {}
        left = [task for task in tasks if not task.has_results()]
        under_way = collections.Counter(
            states[ids[task]] for task in left if ids.get(task) in states
        )
        new = [task for task in left if ids.get(task) not in states]
        for state, num in under_way.items():
            print(f"{num} {state.lower()}")
        if dry_run:
            most = f", at most {self._jobs} at a time" if self._jobs else ""
            print(f"{len(new)} would be submitted as one job{most}, with {self._shown}:")
            for task in new:
                print(task.shown)
        elif new:
            self._submit(new, ids)
        return not left

    def _submit(self, tasks: Sequence[launch.Task], ids: Mapping[launch.Task, str]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if gone := [f"{t.name}, job {ids[t]}: {t.last_words()}" for t in tasks if t in ids]:
            print(f"ended before they had finished, and go on:\n  {listed(gone)}")
        try:
            jobs = self._executor.submit_array([Submission(task) for task in tasks])
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"Slurm refused --slurm {self._shown}: {error}") from error
        for task, job in zip(tasks, jobs, strict=True):
            task.folder.mkdir(parents=True, exist_ok=True)
            _job(task).write_text(job.job_id)
        number = jobs[0].job_id.partition("_")[0]
        print(f"{len(tasks)} submitted as job {number}; the same command again says how they are")


class Submission:
    """What a job of a cluster does: a task, saved and put back into the queue when asked."""

    def __init__(self, task: launch.Task):
        self.task = task

    def __call__(self) -> None:
        """Runs the task.

        Raises:
          UserError: it failed, or was stopped for good, as `scancel` does.
        """
        with signals.stop_requests() as stop:
            failure = launch.play(self.task, stop, os.environ)
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            if failure and signum in stop and callable(signal.getsignal(signum)):
                signal.raise_signal(signum)  # to submitit, which has the job queued again
        if failure:
            raise UserError(failure)

    def checkpoint(self) -> Any:
        """What submitit is to run when the job begins again: the same, for all is in workdirs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _job(task: launch.Task) -> pathlib.Path:
    return task.folder / "job.txt"


def _states() -> dict[str, str]:
    """The states of all jobs of this user that are queued or running, by id.

    Raises:
      UserError: Slurm does not say.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"Slurm does not say what is under way: {found.stderr.strip()}")
    return dict(line.split() for line in found.stdout.splitlines() if line.strip())
