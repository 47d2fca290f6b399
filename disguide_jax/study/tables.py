"""Tables and figures of what has run, equal files for equal results."""

import csv
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disguide_jax.run import pictures
from disguide_jax.study.intervals import mean_and_interval
from disguide_jax.study.results import Result


def format_interval(values: Iterable[float], scale: float = 100, digits: int = 2) -> str:
    """Mean and interval as the tables have them, "94.02 ± 0.25"; without values "/"."""
    values = [value for value in values if value is not None]
    if not values:
        return "/"
    mean, half = mean_and_interval(values)
    shown = f"{scale * mean:,.{digits}f}"
    return shown if np.isnan(half) else f"{shown} ± {scale * half:,.{digits}f}"


def format_queries_to(results: Sequence[Result], accuracy: float) -> str:
    """Mean and interval of the queries to an accuracy, over the runs that reached it."""
    return _format_of_reached(results, accuracy, lambda queries: queries, scale=1, digits=0)


def format_reduction(results: Sequence[Result], accuracy: float, budget: int) -> str:
    """What part of a budget the queries to an accuracy leave, in per cent, over the same runs."""
    return _format_of_reached(results, accuracy, lambda queries: 1 - queries / budget)


def _format_of_reached(
    results: Sequence[Result],
    accuracy: float,
    value: Callable[[float], float],
    scale: float = 100,
    digits: int = 2,
) -> str:
    reached = [result.queries_to(accuracy) for result in results]
    found = [value(queries) for queries in reached if queries is not None]
    text = format_interval(found, scale, digits)
    return text if len(found) == len(reached) else f"{text} ({len(found)} of {len(reached)} runs)"


def write_table(path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Writes PATH.md and PATH.csv; returns the Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, ["---"] * len(header), *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return text


def new_figure() -> Figure:
    """An empty figure that no window or global state knows of."""
    return Figure(figsize=(7, 4.2), layout="constrained")


def draw_curves(
    axes: Axes, label: str, results: Sequence[Result], metric: str = "eval/soft_vote_accuracy"
) -> None:
    """Each run as a thin line and the mean of all as a thick one, over queries."""
    curves = [result.curve(metric) for result in results]
    queries = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.array([np.interp(queries, x, y) for x, y in curves])
    (line,) = axes.plot(queries, values.mean(axis=0), label=label, linewidth=2)
    for x, y in curves:
        axes.plot(x, y, color=line.get_color(), linewidth=0.6, alpha=0.5)


def accuracy_figure(
    path: pathlib.Path, curves: Mapping[str, Sequence[Result]], *, title: str = ""
) -> None:
    """Accuracy of the soft vote against queries, one colour per label, the victim dashed."""
    figure = new_figure()
    axes = figure.subplots()
    for label, results in curves.items():
        draw_curves(axes, label, results)
    accuracies = {r.summary["victim_accuracy"] for results in curves.values() for r in results}
    for accuracy in accuracies:
        axes.axhline(accuracy, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            "victim", (0, accuracy), xytext=(2, 2), textcoords="offset points", fontsize=8
        )
    axes.set(xlabel="queries", ylabel="accuracy of the soft vote", title=title)
    axes.set_ylim(0, 1.04)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(pictures.queries_formatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes PATH.png and PATH.svg, equal files for equal figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
