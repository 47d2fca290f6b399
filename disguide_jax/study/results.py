"""Studies of many runs: what has run, and what is left to run.

A finished run leaves `summary.json`, `metrics.jsonl` and its last `samples.png` in
RESULTS/<family>/<cell>/seed<N>/, and everything shown is computed from these files alone.
"""

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from disguide_jax import shipped
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.files import workdir
from disguide_jax.run import pictures
from disguide_jax.settings import set_value
from disguide_jax.study.launch import Launcher, Run, Task, local


class Cell(NamedTuple):
    """A configuration that is run with several seeds: one row, or one point, of a study."""

    family: str  # of its directory
    config: str  # configs/<config>.py, or <config>:smoke
    overrides: tuple[tuple[str, Any], ...] = ()  # such as ("replay.size", 600)

    @property
    def folder(self) -> pathlib.Path:
        """Where its results lie below RESULTS, and its workdirs below WORKDIRS."""
        words = [self.config.replace(":", "-"), *(f"{k}={v}" for k, v in self.overrides)]
        return pathlib.Path(self.family, ",".join(words).replace("/", "-"))

    def __str__(self) -> str:
        return " ".join([self.config, *(f"{k}={v}" for k, v in self.overrides)])

    def arguments(self, *seeds: int) -> list[str]:
        """What the program is told."""
        file, _, variant = self.config.partition(":")
        path = shipped.CONFIGS / f"{file}.py"
        if path.is_relative_to(pathlib.Path.cwd()):
            path = path.relative_to(pathlib.Path.cwd())
        overrides = (f"--config.{key}={value}" for key, value in self.overrides)
        config = f"{path}:{variant}" if variant else path
        key = "seed" if len(seeds) == 1 else "seeds"
        named = f"--config.{key}={','.join(map(str, seeds))}"
        return [f"--config={config}", named, *overrides]

    def load(self, seed: int) -> Config:
        """The configuration of one run, without running it."""
        config = shipped.load(self.config)
        for key, value in (*self.overrides, ("seed", seed)):
            set_value(config, key, value)
        return config


class Result(NamedTuple):
    """One finished run."""

    summary: dict[str, Any]
    lines: list[dict[str, Any]]  # of its log

    def curve(self, name: str = "eval/soft_vote_accuracy") -> tuple[np.ndarray, np.ndarray]:
        """Queries and values of the lines of the log that have this metric."""
        return pictures.series(self.lines, name)

    def queries_to(self, accuracy: float) -> float | None:
        """Queries after which the soft vote first had this accuracy; None if it never had.

        Interpolated linearly between evaluations, from 0 at no queries.
        """
        queries, values = self.curve()
        reached = np.flatnonzero(values >= accuracy)
        if not len(reached):
            return None
        i = reached[0]
        before_queries, before = (queries[i - 1], values[i - 1]) if i else (0, 0.0)
        share = (accuracy - before) / (values[i] - before)
        return float(before_queries + share * (queries[i] - before_queries))


def load(results: pathlib.Path, cell: Cell, seed: int) -> Result | None:
    """The result of one run; None if it has not finished.

    Raises:
      UserError: it is damaged, or of another configuration than `cell` is now.
    """
    folder = results / cell.folder / f"seed{seed}"
    try:
        summary = json.loads((folder / "summary.json").read_text())
        lines = workdir.read_log(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder} cannot be read: {error}; delete it to run it again") from error
    workdir.refuse_other_config(summary["config"], cell.load(seed), folder, extend=False)
    return Result(summary, lines)


def load_all(results: pathlib.Path, cell: Cell, seeds: Iterable[int]) -> list[Result]:
    """The results of all runs of a cell that have finished."""
    found = (load(results, cell, seed) for seed in seeds)
    return [result for result in found if result is not None]


def run_missing(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    *,
    results: pathlib.Path,
    workdirs: pathlib.Path,
    least_hours: Callable[[Config], float],
    launcher: Launcher | None = None,
    seeds_together: bool = False,
    extra: Sequence[str] = (),
    dry_run: bool = False,
) -> bool:
    """Runs what has not finished, continuing what was begun; returns whether all has finished.

    Args:
      cells: of the study.
      seeds: each cell is run with each.
      results: where finished runs leave their summary and log.
      workdirs: where runs have their workdirs.
      least_hours: what a run takes at least, to tell of those of a kind that has not run yet.
      launcher: what runs them; None is this machine, one at a time.
      seeds_together: the seeds of a cell go to one process, which compiles once.
      extra: arguments for every run.
      dry_run: only print the commands.

    Raises:
      UserError: a run failed; the others have been let finish.
      Stopped: a signal asked for it, and runs under way have been told.
    """
    runs = [(cell, seed) for seed in seeds for cell in dict.fromkeys(cells)]
    left = [(cell, seed) for cell, seed in runs if load(results, cell, seed) is None]
    if not dry_run:
        estimate = _estimate(results, left, least_hours)
        print(f"{len(runs) - len(left)} of {len(runs)} runs have finished{estimate}", flush=True)
    groups = [(cell, [seed]) for cell, seed in left]
    if seeds_together:
        order = dict.fromkeys(cell for cell, _ in left)
        groups = [(cell, [seed for other, seed in left if other == cell]) for cell in order]
    tasks = [_task(cell, members, results, workdirs, extra) for cell, members in groups]
    all_finished = (launcher or local())(tasks, dry_run=dry_run)
    if left and all_finished and not dry_run:
        print(f"{len(runs)} of {len(runs)} runs have finished", flush=True)
    return all_finished


def _task(
    cell: Cell,
    seeds: Sequence[int],
    results: pathlib.Path,
    workdirs: pathlib.Path,
    extra: Sequence[str],
) -> Task:
    below = [cell.folder / f"seed{seed}" for seed in seeds]
    workdir = workdirs / (below[0] if len(seeds) == 1 else cell.folder)
    runs = tuple(
        Run(f"{cell}, seed {seed}", workdirs / path, results / path)
        for seed, path in zip(seeds, below, strict=True)
    )
    name = f"{cell}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return Task(name, tuple(_command(cell, seeds, workdir, extra)), workdir, runs)


def _command(
    cell: Cell, seeds: Sequence[int], workdir: pathlib.Path, extra: Sequence[str]
) -> list[str]:
    program = [sys.executable, "-m", "disguide_jax.main"]
    return [*program, *cell.arguments(*seeds), *extra, f"--workdir={workdir}"]


def _estimate(
    results: pathlib.Path,
    left: Sequence[tuple[Cell, int]],
    least_hours: Callable[[Config], float],
) -> str:
    """How long the rest will take, by runs of the same configuration file or by its FLOPs."""
    known, least, num_new = 0.0, 0.0, 0
    least_hours_of = functools.cache(lambda cell: least_hours(cell.load(0)))
    for cell, seed in left:
        rates = []  # seconds a query
        for path in results.glob(f"*/{cell.config.replace(':', '-')}*/seed*/summary.json"):
            with contextlib.suppress(ValueError, KeyError):
                summary = json.loads(path.read_text())
                rates.append(summary["wall_seconds"] / summary["queries"])
        if rates:
            known += float(np.median(rates)) * cell.load(seed).query_budget / 3600
        else:
            with contextlib.suppress(UserError):  # its run will say what is wrong
                least += least_hours_of(cell)
                num_new += 1
    estimate = f"; the rest takes about {known:.1f} h one after the other" if known else ""
    if num_new:
        estimate += (
            f"; {num_new} of a kind that has not run yet take at least {least:.2g} h: their "
            "FLOPs, as fast as matrix products are on this machine"
        )
    return estimate
