"""Methods side by side on one victim and one budget."""

import pathlib
from collections.abc import Sequence

from disguide_jax import shipped
from disguide_jax.errors import UserError
from disguide_jax.study import cluster, flops, intervals, tables
from disguide_jax.study.results import Cell, Result, load_all, run_missing

SHARES = (0.8, 0.9, 0.95)  # of the victim's accuracy, whose queries are compared
COLLAPSED = 0.5  # a run is called so when it ends below this share of the victim's accuracy


def compare(
    family: str,
    *,
    variant: str,
    seeds: int,
    results: pathlib.Path,
    workdirs: pathlib.Path,
    jobs: int | None = None,
    launcher: str = "local",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Runs what is missing, then writes table and figure.

    Args:
      family: all of configs/FAMILY_*.py are compared.
      variant: of these configurations; "" is themselves.
      seeds: each is run with 0, 1, ... below it.
      results: where finished runs leave their summary and log, and where the table is written.
      workdirs: where runs have their workdirs.
      jobs: runs at a time; None is 1, and on a cluster as many as it lets.
      launcher: what runs them, of cluster.LAUNCHERS.
      slurm: submitit's parameters, each as KEY=VALUE.
      dry_run: only print the commands.

    Raises:
      UserError: there is nothing to compare, it cannot be compared, or a run failed.
    """
    names = sorted(path.stem for path in shipped.CONFIGS.glob(f"{family}_*.py"))
    if not names:
        raise UserError(f"--family {family}: there is no configs/{family}_*.py")
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be at least 1")
    suffix = f":{variant}" if variant else ""
    cells = [Cell(family, name + suffix) for name in names]
    check_comparable(cells)
    finished = run_missing(
        cells,
        range(seeds),
        results=results,
        workdirs=workdirs,
        least_hours=flops.least_extraction_hours,
        seeds_together=launcher == "local" and jobs in (None, 1),
        launcher=cluster.choose(launcher, jobs=jobs, slurm=slurm, folder=workdirs / "slurm"),
        dry_run=dry_run,
    )
    if not finished:
        return
    found = {cell: load_all(results, cell, range(seeds)) for cell in cells}
    found = dict(
        sorted(
            found.items(),
            key=lambda item: -intervals.mean_and_interval(final_accuracies(item[1]))[0],
        )
    )
    header = ["configuration", "method", "labels", "queries", "soft vote, %", "fidelity, %"]
    header += [f"queries to {share:.0%} of the victim" for share in SHARES] + ["collapsed"]
    rows = [make_row(cell, runs) for cell, runs in found.items()]
    path = results / family / "comparison"
    print(tables.write_table(path, header, rows))
    tables.accuracy_figure(path, {cell.config: runs for cell, runs in found.items()})


def check_comparable(cells: list[Cell]) -> None:
    """Raises UserError unless all have one data set, victim and budget."""
    configs = {cell.config: cell.load(seed=0) for cell in cells}
    for what in ("dataset", "query_budget", "victim"):
        values = {name: getattr(config, what) for name, config in configs.items()}
        first = next(iter(values.values()))
        for name, value in values.items():
            if value != first:
                raise UserError(
                    f"configs/{name}.py: its {what} is {value!r}, but that of "
                    f"{next(iter(values))} is {first!r}; a comparison needs one for all"
                )


def final_accuracies(results: list[Result]) -> list[float]:
    """The accuracies of the soft vote at the end of the budget."""
    return [result.summary["soft_vote_accuracy"] for result in results]


def make_row(cell: Cell, results: list[Result]) -> list[str]:
    """One line of the table."""
    first = results[0].summary
    victim = first["victim_accuracy"]
    accuracies = final_accuracies(results)
    collapsed = sum(accuracy < COLLAPSED * victim for accuracy in accuracies)
    return [
        f"`{cell.config}`",
        first["method"],
        first["config"]["labels"],
        f"{first['queries']:,}",
        tables.format_interval(accuracies),
        tables.format_interval(result.summary["fidelity"] for result in results),
        *(tables.format_queries_to(results, share * victim) for share in SHARES),
        f"{collapsed} of {len(results)}",
    ]
