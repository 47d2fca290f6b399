"""The cells of an audit, played and measured in this process or in several beside each other."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from disguide_jax import process
from disguide_jax.audit_config import AuditConfig
from disguide_jax.core import backend
from disguide_jax.errors import Stopped, UserError
from disguide_jax.run import signals
from disguide_jax.study.auditing import runs
from disguide_jax.study.auditing.cells import Cell
from disguide_jax.study.auditing.measurer import Measurer
from disguide_jax.study.auditing.runs import Played

PATIENCE = 0.2  # seconds between two looks at what others do


class Worker:
    """Plays cells one after the other, and measures what has become of their runs."""

    def __init__(self, config: AuditConfig, workdir: pathlib.Path):
        self._config, self._workdir = config, workdir
        self._measurer: Measurer | None = None

    def play(self, cell: Cell) -> Played:
        """Plays a cell, or continues it; what was measured is kept beside its runs.

        Raises:
          UserError: the victim or the images have gone.
          Stopped: a signal asked for it; what has begun is saved.
        """
        played = runs.play(self._config, cell, self._workdir / "cells" / cell.slug)
        if played.seeds:
            self._measurer = self._measurer or Measurer(self._config, played)
            self._measurer.measure(played)
        return played

    def close(self) -> None:
        """Closes the victims."""
        if self._measurer:
            self._measurer.close()


def number(config: AuditConfig) -> int:
    """How many cells of an audit are played at a time."""
    if backend.name() != "cpu":  # which one process fills
        return 1
    return config.jobs or (1 if config.victim.endpoint else 2)


def play(
    config: AuditConfig, workdir: pathlib.Path, cells: Sequence[Cell], stop: Sequence[int]
) -> Generator[Played, None, None]:
    """Plays cells and measures them, and yields what has become of each, in order.

    Args:
      config: of the audit.
      workdir: of the audit.
      cells: to be played, or continued.
      stop: from `signals.stop_requests`.

    Raises:
      UserError: the victim or the images have gone, or a process has.
      Stopped: a signal asked for it; what has begun is saved.
    """
    if number(config) == 1:
        with contextlib.closing(Worker(config, workdir)) as worker:
            yield from map(worker.play, cells)
        return
    with concurrent.futures.ProcessPoolExecutor(
        number(config),
        multiprocessing.get_context("spawn"),  # JAX has threads, of which a fork has none
        _begin,
        (config, workdir),
    ) as executor:
        futures = [executor.submit(_play, cell) for cell in cells]
        try:
            for future in futures:
                yield _wait(future, stop)
        finally:
            for future in futures:
                future.cancel()


def _wait(future: Future[Played], stop: Sequence[int]) -> Played:
    """What has become of a cell; when this process is told to stop, it tells the others."""
    told = False
    while not future.done():
        concurrent.futures.wait([future], PATIENCE)
        if stop and not told:
            told = True
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, stop[0])
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "one of the processes that play cells has been killed, perhaps for want of memory: the "
            "same command continues, and --config.jobs=1 needs less"
        ) from error


class _Other(NamedTuple):
    """What one of the other processes has for as long as it lives."""

    worker: Worker
    stop: Sequence[int]
    open: contextlib.ExitStack


_others: list[_Other] = []  # one in each of them


def _begin(config: AuditConfig, workdir: pathlib.Path) -> None:
    """Sets such a process up."""
    os.setpgid(0, 0)  # a terminal tells the first process alone, which tells us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    process.prepare()
    open_ = contextlib.ExitStack()
    stop = open_.enter_context(signals.stop_requests(aloud=False))
    _others.append(_Other(Worker(config, workdir), stop, open_))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever is under way: the same command continues it


def _play(cell: Cell) -> Played:
    """Plays a cell in such a process, see `Worker.play`."""
    (other,) = _others
    if other.stop:
        raise Stopped(other.stop[0], "other cells")
    return other.worker.play(cell)
