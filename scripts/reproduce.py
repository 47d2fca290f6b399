"""The tables and figures of the paper, each by one command.

usage: python scripts/reproduce.py STUDY [--scale full|small|rehearsal] [--seeds 5]
           [--only CONFIG ...] [--results results] [--workdirs runs] [--data_dir DIR]
           [--jobs 1] [--dry-run]

STUDY is table1 to table6, fig2 to fig5, best: what might beat the paper's settings, or precision:
what bfloat16 does to the curve.

Runs what has not finished, continues what was interrupted, and writes RESULTS/SCALE/STUDY: a
table as .md and .csv, a figure as .png and .svg, with the paper's numbers beside ours. "full" is
the paper's own sizes, for a GPU, and trains the victims first where they are absent. "small" is
the same sweeps on handwritten digits, for two CPU cores. "rehearsal" is "full", victims included,
with toy networks on noise, in minutes.
"""

import argparse
import itertools
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.ticker

from disguide_jax import convert, cost, pictures, plan, studies
from disguide_jax.errors import UserError
from disguide_jax.studies import Cell, Result

Results = dict[Cell, list[Result]]
NOT_REPORTED = "/"


class Paper(NamedTuple):
    """What the paper has of one cell, in per cent (Tables 1, 5 and 6)."""

    victim: str = NOT_REPORTED
    final: str = NOT_REPORTED
    maximum: str = NOT_REPORTED
    individual: str = NOT_REPORTED


class Row(NamedTuple):
    """One line of a table of accuracies."""

    setting: str
    technique: str
    cell: Cell | None  # None: only ever reported
    paper: Paper = Paper()


FULL, SMALL, REHEARSAL = "full", "small", "rehearsal"
C10_SOFT, C10_HARD, C100_SOFT, C100_HARD, C100_HARD_R34 = (
    Cell(FULL, name) for name in ("c10_soft", "c10_hard", "c100_soft", "c100_hard", "c100_hard_r34")
)
# These are also those of scripts/compare.py.
SOFT, HARD, DFME, DFMS = (
    Cell("digits", f"digits_{name}") for name in ("soft", "hard", "dfme", "dfms")
)

FINAL = {  # Tables 1, 5 and 6; "reported" are numbers from the earlier papers in Table 1
    FULL: (
        Row("CIFAR-10, soft", "DFME, reported", None, Paper("95.54", "88.10")),
        Row("CIFAR-10, soft", "DFMS, reported", None, Paper("95.59", "91.24")),
        Row(
            "CIFAR-10, soft",
            "DisGUIDE",
            C10_SOFT,
            Paper("95.54", "94.02 ± 0.25", "94.26 ± 0.20", "93.95 ± 0.15"),
        ),
        Row("CIFAR-10, hard", "DFMS, reported", None, Paper("95.59", "84.51")),
        Row(
            "CIFAR-10, hard",
            "DisGUIDE",
            C10_HARD,
            Paper("95.54", "87.93 ± 1.74", "88.94 ± 0.92", "87.33 ± 0.98"),
        ),
        Row(
            "CIFAR-100, soft",
            "DisGUIDE",
            C100_SOFT,
            Paper("77.52", "69.47 ± 0.88", "69.83 ± 1.01", "68.84 ± 0.54"),
        ),
        Row("CIFAR-100, hard", "DFMS, reported", None, Paper("78.52", "43.56")),
        Row(
            "CIFAR-100, hard",
            "DisGUIDE",
            C100_HARD,
            Paper("77.70", "62.04 ± 1.03", "62.52 ± 0.91", "60.55 ± 0.54"),
        ),
        Row(
            "CIFAR-100, hard, ResNet-34 victim",
            "DisGUIDE",
            C100_HARD_R34,
            Paper("77.52", "58.72 ± 2.42"),
        ),
    ),
    SMALL: (
        Row("digits, soft", "DFME", DFME),
        Row("digits, soft", "DisGUIDE", SOFT),
        Row("digits, hard", "DFMS", DFMS),
        Row("digits, hard", "DisGUIDE", HARD),
    ),
}


class Race(NamedTuple):
    """Table 2: how many queries DisGUIDE needs to what an earlier system ended with."""

    setting: str
    earlier: str
    cell: Cell
    accuracy: float | Cell  # reported, or measured here
    budget: str
    paper: str = NOT_REPORTED


RACES = {
    FULL: (
        Race("CIFAR-10, soft", "DFME", C10_SOFT, 0.8810, "20M", "3.13M ± 0.57M"),
        Race("CIFAR-10, soft", "DFMS", C10_SOFT, 0.9124, "20M", "7.01M ± 1.30M"),
        Race("CIFAR-10, hard", "DFMS", C10_HARD, 0.8451, "8M", "4.02M ± 1.43M"),
        Race("CIFAR-100, hard", "DFMS", C100_HARD, 0.4356, "10M", "3.87M ± 0.37M"),
    ),
    SMALL: (
        Race("digits, soft", "DFME", SOFT, DFME, "48k"),
        Race("digits, hard", "DFMS", HARD, DFMS, "48k"),
    ),
}

# The paper's studies of stability have 8M queries of 20M "to save time".
SHORT = {FULL: (("query_budget", 8_000_000),), SMALL: (("query_budget", 9_600),)}
NO_GRAY = (("generator.gray_every", 0),)


def short(scale: str, *overrides: tuple[str, Any], colour: bool = False) -> Cell:
    """A soft-label cell with the budget of the studies of stability."""
    config = {FULL: "c10_soft", SMALL: "colour_digits_soft" if colour else "digits_soft"}[scale]
    return Cell(scale, config, SHORT[scale] + overrides)


GRAYSCALE = {  # Table 3; of gray images the digits must be in colour
    scale: (
        Row("soft", "without grayscale", short(scale, *NO_GRAY, colour=True), Paper(final=none)),
        Row("soft", "with grayscale", short(scale, colour=True), Paper(final=some)),
        Row("hard", "without grayscale", hard._replace(overrides=NO_GRAY), Paper(final=none_hard)),
        Row("hard", "with grayscale", hard, Paper(final=some_hard)),
    )
    for scale, hard in ((FULL, C10_HARD), (SMALL, Cell(SMALL, "colour_digits_hard")))
    for none, some in [("93.25 ± 0.15", "93.36 ± 0.16")]
    for none_hard, some_hard in [("85.54 ± 2.47", "87.93 ± 1.74")]
}

TRANSFORM = {  # Table 4
    scale: (
        Row("soft", "knows nothing", short(scale, colour=True), Paper("95.54", "93.36 ± 0.16")),
        Row(
            "soft",
            "knows the input transform",
            short(scale, ("victim.input_space", "post-transform"), colour=True),
            Paper("95.54", "93.45 ± 0.23"),
        ),
    )
    for scale in (FULL, SMALL)
}

# Figure 3: 0.05M to 1M images of 8M queries; small, the same shares of the budget.
REPLAY_SIZES = {
    FULL: (50_000, 100_000, 250_000, 500_000, 1_000_000),
    SMALL: (60, 120, 300, 600, 1_200),
}
REPLAY_BATCHES = (1, 2, 3, 4, 5)  # Figure 4
DEFAULT_SIZE = {FULL: 1_000_000, SMALL: 1_200}
FIG3 = {
    scale: {size: short(scale, ("replay.size", size)) for size in sizes}
    for scale, sizes in REPLAY_SIZES.items()
}
FIG4 = {
    scale: {
        b: short(scale, ("replay.size", size), *([("replay.batches", b)] if b != 3 else []))
        for b in REPLAY_BATCHES
    }
    for scale, size in DEFAULT_SIZE.items()
}
# Read in the text of Section 5.3, for the figures' points are not given in numbers.
FIG3_PAPER = {1_000_000: 0.9336}
FIG4_PAPER = {3: 0.9336, 5: 0.9374}

FIG2 = {
    FULL: {"DisGUIDE": C10_SOFT, "DFME": Cell(FULL, "dfme_c10_soft")},
    SMALL: {"DisGUIDE": SOFT, "DFME": DFME},
}
FIG5 = {FULL: C10_SOFT, SMALL: short(SMALL, colour=True)}

IMPROVEMENTS = {  # what might beat the paper's settings at equal queries
    "b = 5": (("replay.batches", 5),),
    "cosine schedule": (("schedule.shape", "cosine"),),
    "three clones": (("num_clones", 3),),
    "four clones": (("num_clones", 4),),
    "average of weights": (("clones.average_decay", 0.999),),
    "replayed images shifted": (("replay.crop_padding", 2),),
    "replayed images mirrored": (("replay.flip", True),),
}
BEST = {
    scale: [
        Row(labels, name, cell._replace(overrides=(*cell.overrides, *override)))
        for labels, cell in (("soft", short(scale)), ("hard", hard))
        for name, override in {"the paper's settings": (), **IMPROVEMENTS}.items()
    ]
    for scale, hard in (
        (FULL, C10_HARD),
        (SMALL, Cell(SMALL, "digits_hard", (("query_budget", 24_000), ("replay.size", 24_000)))),
    )
}

PRECISION = {
    scale: {name: Cell(scale, config, (("precision", name),)) for name in ("float32", "bfloat16")}
    for scale, config in ((FULL, "c10_soft"), (SMALL, "digits_soft"))
}

# What the paper's victims have on the test images, in per cent (Section 4).
VICTIMS = {
    "victims/cifar10-resnet34_8x.safetensors": 95.54,
    "victims/cifar100-resnet34_8x.safetensors": 77.52,
    "victims/cifar100-resnet18_8x.safetensors": 77.70,
}
VICTIM_MARGIN = 1.0  # per cent below the paper's from which a comparison means little


# --- tables


def accuracy_table(
    rows: Sequence[Row],
    results: Results,
    ours: dict[str, Callable[[Result], float]],
    paper: dict[str, Callable[[Paper], str]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the paper's columns, then ours, then seeds and time."""
    header = ["setting", "technique", "queries"]
    header += [f"{name}, paper, %" for name in paper] + [f"{name}, ours, %" for name in ours]
    table = []
    for row in rows:
        found = results.get(row.cell, [])
        # A rehearsal's budget is in its results only.
        budgets = [r.summary["config"]["query_budget"] for r in found]
        if row.cell and not found:
            budgets = [row.cell.load(0).query_budget]
        table.append(
            [
                row.setting,
                row.technique,
                pictures.short_number(budgets[0]) if budgets else NOT_REPORTED,
                *(column(row.paper) for column in paper.values()),
                *(studies.format_interval(map(column, found)) for column in ours.values()),
                str(len(found)),
                studies.format_interval((r.summary["wall_seconds"] / 60 for r in found), 1, 1),
            ]
        )
    return [*header, "seeds", "minutes a run"], table


def of_summary(key: str) -> Callable[[Result], float]:
    """Reads one value of summary.json."""
    return lambda result: result.summary[key]


def individual(result: Result) -> float:
    """Mean accuracy of the single clones of a run."""
    accuracies = result.summary["clone_accuracy"]
    return sum(accuracies) / len(accuracies)


OURS = {
    "victim": of_summary("victim_accuracy"),
    "clone": of_summary("soft_vote_accuracy"),
}
PAPERS = {"victim": lambda paper: paper.victim, "clone": lambda paper: paper.final}


def table1(scale: str, results: Results) -> tuple:
    """Final accuracy."""
    return accuracy_table(FINAL[scale], results, OURS, PAPERS)


def table2(scale: str, results: Results) -> tuple:
    """Queries to the final accuracies of earlier systems, interpolated between evaluations."""
    table = []
    for race in RACES[scale]:
        goal = race.accuracy
        if isinstance(goal, Cell):
            goal = mean_final(results[goal])
        table.append(
            [
                race.setting,
                race.earlier,
                "/" if goal is None else f"{100 * goal:.2f}",
                race.budget,
                race.paper,
                "/" if goal is None else studies.format_queries_to(results[race.cell], goal),
                str(len(results[race.cell])),
            ]
        )
    header = ["setting", "earlier system", "its accuracy, %", "its queries"]
    return [*header, "DisGUIDE's queries, paper", "DisGUIDE's queries, ours", "seeds"], table


def mean_final(found: Sequence[Result]) -> float | None:
    """Mean final accuracy of a cell's runs; None of none."""
    accuracies = [result.summary["soft_vote_accuracy"] for result in found]
    return studies.mean_and_interval(accuracies)[0] if accuracies else None


def table3(scale: str, results: Results) -> tuple:
    """With and without gray images."""
    return accuracy_table(
        GRAYSCALE[scale],
        results,
        {"clone": OURS["clone"]},
        {"clone": PAPERS["clone"]},
    )


def table4(scale: str, results: Results) -> tuple:
    """With and without knowledge of the victim's input transform."""
    return accuracy_table(TRANSFORM[scale], results, OURS, PAPERS)


def own(rows: Iterable[Row]) -> list[Row]:
    """The rows of DisGUIDE."""
    return [row for row in rows if row.technique == "DisGUIDE"]


def table5(scale: str, results: Results) -> tuple:
    """Final and maximum accuracy; an attacker, without test images, can't choose the latter."""
    ours = OURS | {"maximum": of_summary("max_soft_vote_accuracy")}
    return accuracy_table(
        own(FINAL[scale]), results, ours, PAPERS | {"maximum": lambda paper: paper.maximum}
    )


def table6(scale: str, results: Results) -> tuple:
    """Soft vote and single clones."""
    return accuracy_table(
        own(FINAL[scale]),
        results,
        OURS | {"individual": individual},
        PAPERS | {"individual": lambda paper: paper.individual},
    )


def best(scale: str, results: Results) -> tuple:
    """What might beat the paper's settings, at equal queries."""
    ours = {"clone": OURS["clone"], "fidelity": of_summary("fidelity")}
    return accuracy_table(BEST[scale], results, ours, {})


# --- figures


def fig2(scale: str, results: Results, path: pathlib.Path) -> None:
    """Accuracy against queries, of DisGUIDE and DFME."""
    curves = {name: results[cell] for name, cell in FIG2[scale].items() if results[cell]}
    if curves:
        studies.accuracy_figure(path, curves)


def precision(scale: str, results: Results, path: pathlib.Path) -> None:
    """Accuracy against queries, computed in float32 and in bfloat16."""
    found = {name: results[cell] for name, cell in PRECISION[scale].items()}
    studies.accuracy_figure(path, {name: runs for name, runs in found.items() if runs})
    sweep_table(path, "precision", found)


def fig3(scale: str, results: Results, path: pathlib.Path) -> None:
    """Final accuracy against the size of the replay buffer."""
    found = {size: results[cell] for size, cell in FIG3[scale].items()}
    figure, axes = sweep_figure("replay size s, images", found)
    axes.set_xscale("log")
    axes.set_xticks(list(found), [pictures.short_number(size) for size in found])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    finish_sweep(figure, axes, path, FIG3_PAPER if scale == FULL else {})
    sweep_table(path, "s", found)


def fig4(scale: str, results: Results, path: pathlib.Path) -> None:
    """Final accuracy and time against the number of replayed batches."""
    found = {b: results[cell] for b, cell in FIG4[scale].items()}
    figure, axes = sweep_figure("replayed batches a round, b", found)
    axes.set_xticks(list(found))
    times = axes.twinx()
    draw_points(times, found, lambda r: r.summary["wall_seconds"] / 60, "tab:orange", "time")
    times.set(ylabel="minutes a run")
    times.set_ylim(bottom=0)
    finish_sweep(figure, axes, path, FIG4_PAPER if scale == FULL else {}, times)
    sweep_table(path, "b", found)


def sweep_figure(label: str, found: dict[float, list[Result]]) -> tuple[Any, Any]:
    """A figure of accuracy against one setting."""
    figure = studies.new_figure()
    axes = figure.subplots()
    draw_points(axes, found, lambda r: 100 * OURS["clone"](r), "tab:blue", "soft vote, ours")
    axes.set(xlabel=label, ylabel="final accuracy of the soft vote, %")
    axes.grid(alpha=0.3)
    return figure, axes


def draw_points(
    axes: Any,
    found: dict[float, list[Result]],
    value: Callable[[Result], float],
    colour: str,
    label: str,
) -> None:
    """Means with 95 % intervals."""
    points = {x: studies.mean_and_interval(map(value, runs)) for x, runs in found.items() if runs}
    if points:
        means, halves = zip(*points.values(), strict=True)
        axes.errorbar(list(points), means, halves, fmt="o-", color=colour, capsize=3, label=label)


def finish_sweep(
    figure: Any, axes: Any, path: pathlib.Path, paper: dict[float, float], *more: Any
) -> None:
    """The paper's points, a legend, and the files."""
    if paper:
        heights = [100 * y for y in paper.values()]
        axes.plot(list(paper), heights, "k*", label="soft vote, paper")
    handles = [axis.get_legend_handles_labels() for axis in (axes, *more)]
    lines, labels = (itertools.chain(*parts) for parts in zip(*handles, strict=True))
    axes.legend(list(lines), list(labels), frameon=False)
    studies.save_figure(figure, path)


def sweep_table(path: pathlib.Path, setting: str, found: dict[Any, list[Result]]) -> None:
    """The points of a figure in numbers."""
    rows = [
        [
            f"{x:,}" if isinstance(x, int) else x,
            studies.format_interval(map(OURS["clone"], runs)),
            str(len(runs)),
            studies.format_interval((r.summary["wall_seconds"] / 60 for r in runs), 1, 1),
        ]
        for x, runs in found.items()
    ]
    header = [setting, "clone, ours, %", "seeds", "minutes a run"]
    print(studies.write_table(path, header, rows))


class Study(NamedTuple):
    """What a command runs and writes."""

    cells: dict[str, Iterable[Cell | None]]  # by scale
    table: Callable[[str, Results], tuple] | None = None
    figure: Callable[[str, Results, pathlib.Path], None] | None = None


def of_rows(rows: dict[str, Sequence[Row]]) -> dict[str, list[Cell | None]]:
    """The cells of a table's rows."""
    return {scale: [row.cell for row in rows] for scale, rows in rows.items()}


RACERS = {
    scale: [c for race in races for c in (race.cell, race.accuracy) if isinstance(c, Cell)]
    for scale, races in RACES.items()
}
OWN = {scale: own(rows) for scale, rows in FINAL.items()}
STUDIES = {
    "table1": Study(of_rows(FINAL), table1),
    "table2": Study(RACERS, table2),
    "table3": Study(of_rows(GRAYSCALE), table3),
    "table4": Study(of_rows(TRANSFORM), table4),
    "table5": Study(of_rows(OWN), table5),
    "table6": Study(of_rows(OWN), table6),
    "fig2": Study({scale: FIG2[scale].values() for scale in FIG2}, figure=fig2),
    "fig3": Study({scale: FIG3[scale].values() for scale in FIG3}, figure=fig3),
    "fig4": Study({scale: FIG4[scale].values() for scale in FIG4}, figure=fig4),
    "fig5": Study({scale: [cell] for scale, cell in FIG5.items()}),
    "best": Study(of_rows(BEST), best),
    "precision": Study({scale: PRECISION[scale].values() for scale in PRECISION}, figure=precision),
}


# --- running


def rehearsed(cell: Cell) -> Cell:
    """The same at toy size: the victim's and the extraction's smoke variants, on noise."""
    sizes = ("query_budget", "replay.size")
    overrides = tuple((k, v) for k, v in cell.overrides if k not in sizes)
    script = shlex.split(cell.load(0).victim.made_by)[-1]
    weights = f"victims/{pathlib.Path(script).stem}-smoke.safetensors"
    return Cell(REHEARSAL, f"{cell.config}:smoke", (*overrides, ("victim.weights", weights)))


def victims_of(cells: dict[Cell, Cell]) -> dict[str, str]:
    """Weights of the victims that do not come with the package, and what makes them."""
    victims = {}
    for cell, run in cells.items():
        if made_by := cell.load(0).victim.made_by:
            variant = ":smoke" if run.config.endswith(":smoke") else ""
            victims[run.load(0).victim.weights] = made_by + variant
    return victims


def prepare_victims(victims: dict[str, str], *, data_dir: str, dry_run: bool) -> None:
    """Trains the victims that are absent, and checks what all of them are worth.

    Raises:
      UserError: training failed, or a victim is so much worse than the paper's that a
        comparison with the paper's numbers would mean little.
    """
    for weights, made_by in victims.items():
        if not pathlib.Path(weights).exists():
            train_victim(made_by, data_dir=data_dir, dry_run=dry_run)
        if not dry_run:
            check_victim(weights)


def train_victim(made_by: str, *, data_dir: str, dry_run: bool) -> None:
    """Says what the training takes, and does it."""
    _, script, option, config = shlex.split(made_by)
    options = [f"--config.data_dir={data_dir}"] if data_dir else []
    print(shlex.join(["python", script, option, config, *options]), flush=True)
    if dry_run:
        return
    training = studies.load_config(pathlib.Path(config).name.replace(".py", ""))
    hours = cost.least_hours(cost.training_flops(training), training.precision)
    print(f"That takes at least {hours:.2g} h: its FLOPs, as matrix products.", flush=True)
    script, config = str(studies.ROOT / script), str(studies.ROOT / config)
    if subprocess.run([sys.executable, script, option, config, *options], check=False).returncode:
        raise UserError("the victim's training did not end; the same command continues")


def check_victim(weights: str) -> None:
    """Compares it with the paper's."""
    accuracy = 100 * float(convert.load_metadata(weights).get("test_accuracy", "nan"))
    print(f"{weights}: {accuracy:.2f} % on the test images", flush=True)
    if accuracy < VICTIMS.get(weights, 0.0) - VICTIM_MARGIN:
        raise UserError(
            f"{weights} has {accuracy:.2f} % on the test images, and the paper's victim "
            f"{VICTIMS[weights]:.2f} %; train a better one, or run its configuration by itself"
        )


def save_samples(found: Sequence[Result], path: pathlib.Path, folder: pathlib.Path) -> None:
    """Figure 5: the generator's images at the end of a run."""
    if found:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "samples.png", path.with_suffix(".png"))


def main(args: argparse.Namespace) -> None:
    """Runs what is missing, then writes the table or figure of all that has finished."""
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}; it must be at least 1")
    study, rehearsal = STUDIES[args.study], args.scale == REHEARSAL
    scale = FULL if rehearsal else args.scale
    cells = {cell: rehearsed(cell) if rehearsal else cell for cell in study.cells[scale] if cell}
    seeds = range(args.seeds)
    to_run = {c: run for c, run in cells.items() if not args.only or c.config in args.only}
    if unknown := set(args.only) - {cell.config for cell in cells}:
        known = ", ".join(dict.fromkeys(cell.config for cell in cells))
        raise UserError(f"--only {', '.join(unknown)}: {args.study} has {known}")
    if not args.dry_run:
        for run in to_run.values():
            print(f"{run}: {plan.say_needs(run.load(0))}")
    prepare_victims(victims_of(to_run), data_dir=args.data_dir, dry_run=args.dry_run)
    extra = [f"--config.data_dir={args.data_dir}"] if args.data_dir else []
    studies.run_missing(
        list(to_run.values()),
        seeds,
        results=args.results,
        workdirs=args.workdirs,
        jobs=args.jobs,
        extra=extra,
        dry_run=args.dry_run,
    )
    if args.dry_run:
        return
    results = {cell: studies.load_all(args.results, run, seeds) for cell, run in cells.items()}
    path = args.results / args.scale / args.study
    if study.table:
        print(studies.write_table(path, *study.table(scale, results)))
    if study.figure:
        study.figure(scale, results, path)
    if args.study == "fig5":
        (run,) = cells.values()
        save_samples(*results.values(), path, args.results / run.folder / "seed0")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--scale", choices=(FULL, SMALL, REHEARSAL), default=FULL)
    parser.add_argument("--seeds", type=int, default=5, help="run each with seeds 0, 1, ...")
    parser.add_argument("--only", nargs="+", default=[], metavar="CONFIG", help="such as c10_hard")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--workdirs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data_dir", default="", help="where cifar10.npz or TFDS's data sets lie")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    try:
        main(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
