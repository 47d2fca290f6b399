"""An audit from its first cell to its report.

WORKDIR/cells/CELL/seedN is the workdir of a run, and CELL/output.txt what its runs have said. The
same command continues an audit that was stopped, run by run, and nothing that has ended is done
again. report.json and report.html are written at the end.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

from disguide_jax import paths
from disguide_jax.audit_config import AuditConfig
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import atomic
from disguide_jax.files import workdir as workdir_files
from disguide_jax.run import signals
from disguide_jax.run.compiled import FunctionsOf, Shared
from disguide_jax.settings import settings
from disguide_jax.study import report
from disguide_jax.study.auditing import cells, contents, runs
from disguide_jax.study.auditing.measurer import Measurer
from disguide_jax.study.auditing.runs import Played

INSTANT = 2.0  # seconds: a cell that takes less had ended before, and tells nothing of others


def run(config: AuditConfig, workdir: pathlib.Path, command: str) -> dict[str, Any]:
    """Runs an audit, or continues the one that `workdir` holds, and writes its report.

    Args:
      config: of the audit.
      workdir: made if absent.
      command: what was typed, for the report.

    Returns:
      What `report.json` holds.

    Raises:
      UserError: a mistake in the configuration, the workdir is of another audit, or no run has
        ended. What goes wrong in one cell is in the report, and the others stand.
      Stopped: a signal asked for it; what has begun is saved.
    """
    config = cells.spelled_out(config)
    cells.validate(config)
    workdir = paths.expanded(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir} cannot be made: {error.strerror}") from error
    functions_of = Shared()  # a defence is part of the victim
    with (
        workdir_files.lock(workdir),
        signals.stop_requests() as stop,
        Measurer.opened(config, functions_of) as measurer,
    ):
        _refuse_other(config, workdir)
        played = _play_all(measurer, functions_of, workdir, stop)
        if not any(each.seeds for each in played):
            raise UserError("no run has ended:\n" + "\n".join(dict.fromkeys(map(_line, played))))
        found = contents.gather(measurer, workdir, played, command)
        atomic.write_json(workdir / "report.json", found)
        report.write(found, workdir / "report.html")
    print(f"report     {workdir / 'report.html'}, and report.json beside it", flush=True)
    return found


def _refuse_other(config: AuditConfig, workdir: pathlib.Path) -> None:
    """Refuses a workdir that began with another victim, budget or recipe; notes what this is."""
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    path = workdir / "audit.json"
    before = json.loads(path.read_text()) if path.exists() else now
    free = {key.partition(".")[0] for key, known in settings(AuditConfig).items() if known.resume}
    for key in now.keys() - free | {"victim"}:
        if before.get(key) != now[key]:
            raise UserError(
                f"{workdir} holds an audit with another config.{key}: use the same again, or "
                "another --workdir"
            )
    atomic.write_json(path, now)


def _play_all(
    measurer: Measurer, functions_of: FunctionsOf, workdir: pathlib.Path, stop: Sequence[int]
) -> list[Played]:
    """Runs and measures every cell, and says how it went and how long the others may take."""
    config = measurer.config
    asked_for, played, seconds = cells.cells_of(config), list[Played](), list[float]()
    print(
        f"{config.name}: {len(asked_for)} cells of {len(config.seeds)} runs with "
        f"{config.query_budget:,} queries each, in {workdir}",
        flush=True,
    )
    for left, cell in reversed(list(enumerate(reversed(asked_for)))):
        if stop:
            raise Stopped(stop[0], f"{len(played)} of {len(asked_for)} cells")
        print(f"cell {len(asked_for) - left} of {len(asked_for)}: {cell}", flush=True)
        began = time.perf_counter()
        found = runs.play(config, cell, workdir / "cells" / cell.slug, functions_of)
        if found.seeds:
            measurer.measure(found)
        took = time.perf_counter() - began
        seconds += [took] if took > INSTANT else []
        print(f"    {_line(found)}", flush=True)
        if seconds and left:
            print(f"    {_in_words(statistics.mean(seconds) * left)} left", flush=True)
        played.append(found)
    return played


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"about {minutes} minute{'s' * (minutes != 1)}" if minutes else "less than a minute"


def _line(played: Played) -> str:
    """How a cell went."""
    if played.state != "done":
        return f"{played.state}: {(played.why or '').splitlines()[0]}"
    summaries = [played.summary(seed) for seed in played.seeds]
    names = {"accuracy": "soft_vote_accuracy", "fidelity": "fidelity"}
    values = {name: [summary[key] for summary in summaries] for name, key in names.items()}
    return ", ".join(
        f"{name} {' '.join(f'{value:.3f}' for value in of_all)}"
        for name, of_all in values.items()
        if None not in of_all
    )
