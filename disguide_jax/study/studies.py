"""Every study of the paper: the runs it needs, and the table or figure that they make."""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disguide_jax.run import pictures
from disguide_jax.study import intervals, tables
from disguide_jax.study.paper import (
    BEST,
    FIG2,
    FIG3,
    FIG3_PAPER,
    FIG4,
    FIG4_PAPER,
    FIG5,
    FINAL,
    FULL,
    GRAYSCALE,
    NOT_REPORTED,
    OWN,
    PRECISION,
    RACES,
    TRANSFORM,
    Paper,
    Row,
)
from disguide_jax.study.results import Cell, Result

Results = dict[Cell, list[Result]]
Sweep = dict[int, list[Result]]  # by the value of one setting
Table = tuple[list[str], list[list[str]]]  # header and rows


def accuracy_table(
    rows: Sequence[Row],
    results: Results,
    ours: dict[str, Callable[[Result], float]],
    paper: dict[str, Callable[[Paper], str]],
) -> Table:
    """Header and rows: the paper's columns, then ours, then seeds."""
    header = ["setting", "technique", "queries"]
    header += [f"{name}, paper, %" for name in paper] + [f"{name}, ours, %" for name in ours]
    table = []
    for row in rows:
        found = results.get(row.cell, []) if row.cell else []
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
                *(tables.format_interval(map(column, found)) for column in ours.values()),
                str(len(found)),
            ]
        )
    return [*header, "seeds"], table


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


def table1(scale: str, results: Results) -> Table:
    """The final accuracies, the paper's beside ours, and the gain over earlier systems."""
    rows = FINAL[scale]
    paper = PAPERS | {"gain": lambda paper: paper.gain}
    header, table = accuracy_table(rows, results, OURS, paper)
    header.insert(-1, "gain, ours, %")
    for row, line in zip(rows, table, strict=True):
        line.insert(-1, gain(row, rows, results))
    return header, table


def gain(row: Row, rows: Sequence[Row], results: Results) -> str:
    """What DisGUIDE has more than the best earlier system of its setting, in points of per cent.

    As in the paper an earlier system is one number, where it was run here the mean of its runs,
    and the interval is that of DisGUIDE's runs alone.
    """
    rivals = [other for other in rows if other.setting == row.setting and other.technique != OWN]
    finals = [final_of(rival.cell or float(rival.paper.final) / 100, results) for rival in rivals]
    known = [final for final in finals if final is not None]
    if row.technique != OWN or row.cell is None or not known:
        return NOT_REPORTED
    earlier = max(known)
    return tables.format_interval(OURS["clone"](run) - earlier for run in results[row.cell])


def final_of(system: float | Cell, results: Results) -> float | None:
    """An earlier system's final accuracy, reported or the mean of its runs; None of no runs."""
    if not isinstance(system, Cell):
        return system
    accuracies = [OURS["clone"](run) for run in results[system]]
    return intervals.mean_and_interval(accuracies)[0] if accuracies else None


def table2(scale: str, results: Results) -> Table:
    """Queries to the final accuracies of earlier systems, interpolated between evaluations."""
    table = []
    for race in RACES[scale]:
        found, goal = results[race.cell], final_of(race.accuracy, results)
        accuracy, queries, reduction = [NOT_REPORTED] * 3
        if goal is not None:
            accuracy = f"{100 * goal:.2f}"
            queries = tables.format_queries_to(found, goal)
            reduction = tables.format_reduction(found, goal, race.budget)
        budget = pictures.short_number(race.budget)
        line = [race.setting, race.earlier, accuracy, budget, race.paper, queries]
        table.append([*line, race.paper_reduction, reduction, str(len(found))])
    header = ["setting", "earlier system", "its accuracy, %", "its queries"]
    header += ["DisGUIDE's queries, paper", "DisGUIDE's queries, ours"]
    return [*header, "reduction, paper, %", "reduction, ours, %", "seeds"], table


def table3(scale: str, results: Results) -> Table:
    """The final accuracies with and without gray images."""
    return accuracy_table(
        GRAYSCALE[scale],
        results,
        {"clone": OURS["clone"]},
        {"clone": PAPERS["clone"]},
    )


def table4(scale: str, results: Results) -> Table:
    """With and without knowledge of the victim's input transform."""
    return accuracy_table(TRANSFORM[scale], results, OURS, PAPERS)


def own(rows: Iterable[Row]) -> list[Row]:
    """The rows of DisGUIDE."""
    return [row for row in rows if row.technique == OWN]


def table5(scale: str, results: Results) -> Table:
    """Final and maximum accuracy; an attacker, without test images, can't choose the latter."""
    ours = OURS | {"maximum": of_summary("max_soft_vote_accuracy")}
    return accuracy_table(
        own(FINAL[scale]), results, ours, PAPERS | {"maximum": lambda paper: paper.maximum}
    )


def table6(scale: str, results: Results) -> Table:
    """Soft vote and single clones."""
    return accuracy_table(
        own(FINAL[scale]),
        results,
        OURS | {"individual": individual},
        PAPERS | {"individual": lambda paper: paper.individual},
    )


def best(scale: str, results: Results) -> Table:
    """What might beat the paper's settings, at equal queries."""
    ours = {"clone": OURS["clone"], "fidelity": of_summary("fidelity")}
    return accuracy_table(BEST[scale], results, ours, {})


def fig2(scale: str, results: Results, path: pathlib.Path) -> None:
    """Accuracy against queries, of DisGUIDE and DFME."""
    curves = {name: results[cell] for name, cell in FIG2[scale].items() if results[cell]}
    if curves:
        tables.accuracy_figure(path, curves)


def precision(scale: str, results: Results, path: pathlib.Path) -> None:
    """Accuracy against queries, computed in float32 and in bfloat16."""
    found = {name: results[cell] for name, cell in PRECISION[scale].items()}
    tables.accuracy_figure(path, {name: runs for name, runs in found.items() if runs})
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


def sweep_figure(label: str, found: Sweep) -> tuple[Figure, Axes]:
    """A figure of accuracy against one setting."""
    figure = tables.new_figure()
    axes = figure.subplots()
    draw_points(axes, found, lambda r: 100 * OURS["clone"](r), "tab:blue", "soft vote, ours")
    axes.set(xlabel=label, ylabel="final accuracy of the soft vote, %")
    axes.grid(alpha=0.3)
    return figure, axes


def draw_points(
    axes: Axes,
    found: Sweep,
    value: Callable[[Result], float],
    colour: str,
    label: str,
) -> None:
    """Means with 95 % intervals."""
    points = {x: intervals.mean_and_interval(map(value, runs)) for x, runs in found.items() if runs}
    if points:
        means, halves = zip(*points.values(), strict=True)
        axes.errorbar(list(points), means, halves, fmt="o-", color=colour, capsize=3, label=label)


def finish_sweep(
    figure: Figure, axes: Axes, path: pathlib.Path, paper: Mapping[int, float], *more: Axes
) -> None:
    """The paper's points, a legend, and the files."""
    if paper:
        heights = [100 * y for y in paper.values()]
        axes.plot(list(paper), heights, "k*", label="soft vote, paper")
    handles = [axis.get_legend_handles_labels() for axis in (axes, *more)]
    lines, labels = (itertools.chain(*parts) for parts in zip(*handles, strict=True))
    axes.legend(list(lines), list(labels), frameon=False)
    tables.save_figure(figure, path)


def sweep_table(
    path: pathlib.Path, setting: str, found: Mapping[int, list[Result]] | Mapping[str, list[Result]]
) -> None:
    """The points of a figure in numbers."""
    rows = [
        [
            f"{x:,}" if isinstance(x, int) else x,
            tables.format_interval(map(OURS["clone"], runs)),
            str(len(runs)),
        ]
        for x, runs in found.items()
    ]
    header = [setting, "clone, ours, %", "seeds"]
    print(tables.write_table(path, header, rows))


class Study(NamedTuple):
    """What a command runs and writes."""

    cells: Mapping[str, Iterable[Cell | None]]  # by scale
    table: Callable[[str, Results], Table] | None = None
    figure: Callable[[str, Results, pathlib.Path], None] | None = None


def of_rows(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Cell | None]]:
    """The cells of a table's rows."""
    return {scale: [row.cell for row in rows] for scale, rows in rows.items()}


RACERS = {
    scale: [c for race in races for c in (race.cell, race.accuracy) if isinstance(c, Cell)]
    for scale, races in RACES.items()
}
OWN_ROWS = {scale: own(rows) for scale, rows in FINAL.items()}
STUDIES = {
    "table1": Study(of_rows(FINAL), table1),
    "table2": Study(RACERS, table2),
    "table3": Study(of_rows(GRAYSCALE), table3),
    "table4": Study(of_rows(TRANSFORM), table4),
    "table5": Study(of_rows(OWN_ROWS), table5),
    "table6": Study(of_rows(OWN_ROWS), table6),
    "fig2": Study({scale: FIG2[scale].values() for scale in FIG2}, figure=fig2),
    "fig3": Study({scale: FIG3[scale].values() for scale in FIG3}, figure=fig3),
    "fig4": Study({scale: FIG4[scale].values() for scale in FIG4}, figure=fig4),
    "fig5": Study({scale: [cell] for scale, cell in FIG5.items()}),
    "best": Study(of_rows(BEST), best),
    "precision": Study({scale: PRECISION[scale].values() for scale in PRECISION}, figure=precision),
}
