"""Runs methods side by side on one victim and one budget, and tabulates and draws them.

usage: python scripts/compare.py [--family digits] [--seeds 5] [--jobs 1]
           [--results results] [--workdirs runs] [--dry-run]

A family is all of configs/FAMILY_*.py. The same command again continues; when all runs have
finished it writes RESULTS/FAMILY/comparison.{md,csv,png,svg} and prints the table.
"""

import argparse
import pathlib
import sys

import jax

from disguide_jax import studies
from disguide_jax.errors import UserError

SHARES = (0.8, 0.9, 0.95)  # of the victim's accuracy, whose queries are compared
COLLAPSED = 0.5  # a run is called so when it ends below this share of the victim's accuracy


def main(args: argparse.Namespace) -> None:
    """Runs what is missing, then writes table and figure."""
    names = sorted(path.stem for path in (studies.ROOT / "configs").glob(f"{args.family}_*.py"))
    if not names:
        raise UserError(f"--family {args.family}: there is no configs/{args.family}_*.py")
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}; it must be at least 1")
    suffix = f":{args.variant}" if args.variant else ""
    cells = [studies.Cell(args.family, name + suffix) for name in names]
    check_comparable(cells)
    studies.run_missing(
        cells,
        range(args.seeds),
        results=args.results,
        workdirs=args.workdirs,
        jobs=args.jobs,
        dry_run=args.dry_run,
    )
    if args.dry_run:
        return
    results = {cell: studies.load_all(args.results, cell, range(args.seeds)) for cell in cells}
    results = dict(
        sorted(
            results.items(),
            key=lambda item: -studies.mean_and_interval(final_accuracies(item[1]))[0],
        )
    )
    header = ["configuration", "method", "labels", "queries", "soft vote, %", "fidelity, %"]
    header += [f"queries to {share:.0%} of the victim" for share in SHARES] + ["collapsed"]
    rows = [make_row(cell, found) for cell, found in results.items()]
    path = args.results / args.family / "comparison"
    print(studies.write_table(path, header, rows))
    studies.accuracy_figure(path, {cell.config: found for cell, found in results.items()})


def check_comparable(cells: list[studies.Cell]) -> None:
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


def final_accuracies(results: list[studies.Result]) -> list[float]:
    """Of the soft vote, at the end of the budget."""
    return [result.summary["soft_vote_accuracy"] for result in results]


def make_row(cell: studies.Cell, results: list[studies.Result]) -> list[str]:
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
        studies.format_interval(accuracies),
        studies.format_interval(result.summary["fidelity"] for result in results),
        *(studies.format_queries_to(results, share * victim) for share in SHARES),
        f"{collapsed} of {len(results)}",
    ]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="digits")
    parser.add_argument("--variant", default="", help="of the configurations: smoke")
    parser.add_argument("--seeds", type=int, default=5, help="run each with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--workdirs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    try:
        main(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
