"""One run in several processes: how they find each other, and how they end when one is lost.

They are told of each other by the command line, or by Slurm where a step has several tasks.
JAX ends a process with pages of its log when another one is dead; a user sees one message.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax

from disguide_jax.config import Config
from disguide_jax.core import backend, machines
from disguide_jax.errors import Stopped, UserError, divert
from disguide_jax.run.program import method_of

JOINING_SECONDS = 120  # at most, until all are there
LOST_SECONDS = 15  # without a sign of life
LEAVING_SECONDS = 10  # that those who end wait for each other
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
LOST = (
    "another process of this run has ended; what it said is where it ran. The last checkpoint is "
    "whole: start all processes again, with the same commands, and the run goes on."
)
# What JAX says of it: a broken connection, or no sign of life.
_last_words = [LOST]  # what to say in place of C++
_handlers: list[object] = []  # of signals in C, which must not be collected
OF_OTHERS = r"gloo|nccl|distributed service|coordination|heartbeat|socket|connection|barrier"


class Told(NamedTuple):
    """What a process of several is told on its command line."""

    coordinator: str  # HOST:PORT of the first process
    num_processes: int
    process_id: int  # from 0


def told(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Told | None:
    """The flags of a process of several, checked; None where there are none.

    Raises:
      UserError: one is missing or wrong.
    """
    flags = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        if len(missing) == len(flags):
            return None
        raise UserError(
            f"--{missing[0]} is missing; one run in several processes needs --coordinator "
            "HOST:PORT, of the first, --num_processes and --process_id, from 0, in each of them"
        )
    port = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if port is None or not 0 < int(port[1]) < 2**16:
        raise UserError(
            f"--coordinator is {coordinator!r}; it must be HOST:PORT, of the machine of process 0 "
            "and a port that is free there"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}; it must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id}; of {num_processes} processes it must be from 0 to "
            f"{num_processes - 1}, another one in each"
        )
    return Told(coordinator, num_processes, process_id)


@contextlib.contextmanager
def joined(told: Told | None) -> Iterator[None]:
    """In this block the processes of a run are one; nothing happens where there is one alone.

    It must be entered before JAX has looked for devices.

    Args:
      told: by the command line; if nothing, Slurm is asked.

    Raises:
      UserError: the others are not there after JOINING_SECONDS.
    """
    if told is None and not _in_step_of_several():
        yield
        return
    _speak_last()
    _initialize(told)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    divert(1, nowhere)  # where gloo greets
    if not machines.is_first():
        os.dup2(nowhere, sys.stdout.fileno())
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        _leave()
        raise
    except UserError as error:  # perhaps the others are about to say the same
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave()
        os._exit(2)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _is_of_others(str(error)):
            _end(LOST)
        traceback.print_exc()
        os._exit(1)  # or else JAX would wait for the others
    _leave()


def check(config: Config, workdir: pathlib.Path, *found: object) -> None:
    """Refuses what several processes cannot play, or not together.

    Args:
      config: with nothing left to choose.
      workdir: as each of them was told.
      found: what each found, there and of what the run is given.

    Raises:
      UserError: in every process.
    """
    if machines.count() == 1:
        return
    several = f"one run in {machines.count()} processes"
    if config.victim.endpoint:
        raise UserError(
            f"config.victim.endpoint is {config.victim.endpoint!r}; {several} needs a victim "
            "whose weights are at hand (config.victim.weights)"
        )
    method = method_of(config)
    if method.learns_from_file:
        raise UserError(f"config.method is {method.name!r}; {several} learns from a victim")
    if method.devices_meet_in_loops and backend.calls_collide():
        raise UserError(
            f"config.method is {method.name!r}, whose loops would make CPUs in several processes "
            "wait for each other for ever; start one process, which takes all CPUs of a machine"
        )
    if config.devices < jax.device_count():
        raise UserError(
            f"config.devices is {config.devices}; {several} takes all {jax.device_count()} that "
            f"they have ({backend.describe()}): leave it out, or start fewer processes"
        )
    for what, value in (
        ("another configuration than process 0", config),
        ("another victim, data or workdir, which all must share,", found),
    ):
        differing = machines.differing(repr(value))
        if differing:
            raise UserError(
                f"process {differing} of {machines.count()} has {what} "
                f"(here {workdir}). Start all with the same command, but for --process_id; runs "
                "that are not one need a step, or flags, of their own"
            )


def refuse_seeds(config: Config) -> None:
    """Raises UserError where several processes are told several seeds."""
    if machines.count() > 1:
        raise UserError(
            f"config.seeds is {','.join(map(str, config.seeds))}; one run in several processes "
            "has one, config.seed: start a run for each seed"
        )


def _in_step_of_several() -> bool:
    """Whether Slurm has started this process as one of several tasks of a step."""
    return all(name in os.environ for name in SLURM) and all(
        int(os.environ[name]) > 1 for name in SLURM[2:]
    )


def _initialize(told: Told | None) -> None:
    where = f"at {told.coordinator}" if told else "in this step"
    _last_words.append(
        f"the processes of this run did not find each other {where} within {JOINING_SECONDS} s. "
        "Start all of them, each with its own --process_id, and see that they reach that port, "
        "which nothing else may use"
    )
    jax.config.update("jax_enable_preemption_service", False)  # signals are ours
    try:
        jax.distributed.initialize(
            coordinator_address=told.coordinator if told else None,
            num_processes=told.num_processes if told else None,
            process_id=told.process_id if told else None,
            cluster_detection_method="deactivate" if told else "slurm",
            initialization_timeout=JOINING_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LEAVING_SECONDS,
        )
    except (RuntimeError, ValueError):
        _end(_last_words[-1])
    _last_words.pop()


def _leave() -> None:
    """Ends together with the others, as far as they are about to end, too."""
    sys.stdout.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _is_of_others(said: str) -> bool:
    """Whether JAX says that something is wrong with another process."""
    return re.search(OF_OTHERS, said, re.IGNORECASE) is not None


def _speak_last() -> None:
    """Makes one message of what C++ says when it aborts because another process is lost."""
    said, path = tempfile.mkstemp()
    os.unlink(path)
    kept = divert(2, said)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(signum: int) -> None:
        text = os.pread(said, 2**20, 0)
        if _is_of_others(text.decode(errors="replace")):
            _end(_last_words[-1])
        os.write(kept, text)
        os._exit(128 + signum)

    _handlers.append(on_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)


def _end(message: str) -> None:
    """Ends this process at once: threads that wait for others would not."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(2)
