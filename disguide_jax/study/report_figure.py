"""The figure of an audit's report, as SVG: what copies reach against queries."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from disguide_jax.study.findings import Cell, Report, finished, strongest, values
from disguide_jax.study.markup import Html, tag

TOP, BOTTOM, LEFT = 34, 44, 40  # around the plot
LINE = 16  # from one label to the next
MOST_POINTS = 150  # of a curve
MOST_LETTERS = 34  # of a label


class Frame(NamedTuple):
    """Where things are drawn."""

    width: int
    height: int
    right: int  # of the plot; labels stand behind it
    most: float  # queries

    def x(self, queries: float) -> float:
        """The place of a number of queries in the figure."""
        return LEFT + (self.right - LEFT) * queries / self.most

    def y(self, value: float) -> float:
        """The place of a fraction in the figure."""
        return TOP + (self.height - TOP - BOTTOM) * (1 - value)


class Curve(NamedTuple):
    """What one row of the figure shows."""

    attack: str
    answers: str
    style: str  # a class of the page's style sheet
    queries: np.ndarray
    mean: np.ndarray
    runs: list[tuple[np.ndarray, np.ndarray]]

    def label(self, most: int) -> str:
        """The attack and its answers, of which the attack is shortened to `most` letters."""
        room = most - len(f", {self.answers}")
        attack = self.attack if len(self.attack) <= room else f"{self.attack[: room - 1]}…"
        return f"{attack}, {self.answers}"


def measure(report: Report) -> str:
    """What the curves are of, "accuracy" or without labelled images "fidelity"."""
    known = any(values(c, "accuracy") for c in _drawn(report))
    return "accuracy" if known and report["victim"]["accuracy"] is not None else "fidelity"


def _drawn(report: Report) -> list[Cell]:
    roles = ("attack", "baseline", "upper_bound")
    cells = itertools.chain.from_iterable(finished(report, role=role) for role in roles)
    return [c for c in cells if any(run["curve"] for run in c["runs"])]


def figure(report: Report, name: str, width: int, height: int) -> Html | None:
    """Curves of what is undefended, the victim dashed; None where there is nothing to draw.

    Args:
      report: of an audit.
      name: with which its ids begin.
      width: in pixels; the page shows a wide one or a narrow one.
      height: in pixels; more where there are many labels.
    """
    curves = [_curve(c, best=c is strongest(report)) for c in _drawn(report)]
    if not curves:
        return None
    letters = max(len(c.label(MOST_LETTERS)) for c in curves)
    right = width - min(round(7.2 * letters) + 26, round(0.42 * width))
    height = max(height, TOP + BOTTOM + LINE * len(curves))
    frame = Frame(width, height, right, max(c.queries[-1] for c in curves) or 1)
    what = measure(report)
    ends = "; ".join(f"{c.label(MOST_LETTERS)}: {100 * c.mean[-1]:.1f} %" for c in curves)
    return tag(
        "svg",
        tag("title", f"The copies' {what} against the number of queries", id=f"{name}-title"),
        tag("desc", f"At the end: {ends}.", id=f"{name}-about"),
        *_axes(frame, what),
        *_victim(frame, report, what),
        *(_draw(frame, c) for c in reversed(curves)),
        *_labels(frame, curves),
        viewBox=f"0 0 {width} {height}",
        class_=name,
        role="img",
        aria_labelledby=f"{name}-title {name}-about",
    )


def _curve(cell: Cell, *, best: bool) -> Curve:
    runs = [np.asarray(run["curve"], float).T for run in cell["runs"] if run["curve"]]
    queries = np.unique(np.concatenate([run[0] for run in runs]))
    queries = queries[_some(len(queries))]
    mean = np.mean([np.interp(queries, x, y) for x, y in runs], axis=0)
    style = f"{cell['role'].replace('_', '-')} {cell['answers']}{' best' * best}"
    fewer = [(x[_some(len(x))], y[_some(len(x))]) for x, y in runs]
    return Curve(cell["attack"], cell["answers"], style, queries, mean, fewer)


def _some(num: int) -> np.ndarray:
    """Places in a list of which at most MOST_POINTS are drawn, the first and the last always."""
    return np.unique(np.linspace(0, num - 1, min(num, MOST_POINTS)).round().astype(int))


def _axes(frame: Frame, what: str) -> list[Html]:
    drawn = []
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1):
        y = f"{frame.y(value):.1f}"
        drawn.append(tag("line", x1=LEFT, x2=frame.right, y1=y, y2=y, class_="grid"))
        place = {"x": LEFT - 6, "y": f"{frame.y(value) + 4:.1f}", "text_anchor": "end"}
        drawn.append(tag("text", f"{100 * value:.0f}", **place))
    base = frame.height - BOTTOM
    for queries in ticks(frame.most, 5 if frame.width > 500 else 2):
        x = f"{frame.x(queries):.1f}"
        drawn.append(tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="grid"))
        drawn.append(tag("text", f"{queries:,.0f}", x=x, y=base + 18, text_anchor="middle"))
    middle = f"{(LEFT + frame.right) / 2:.1f}"
    drawn.append(tag("text", "queries", x=middle, y=frame.height - 6, text_anchor="middle"))
    drawn.append(tag("text", f"{what}, %", x=6, y=14))
    return drawn


def ticks(most: float, num: int) -> list[float]:
    """About `num` round numbers from 0 to `most`."""
    size = 10 ** math.floor(math.log10(most / num))
    step = next(m * size for m in (1, 2, 5, 10) if most / (m * size) <= num)
    return [i * step for i in range(math.floor(most / step) + 1)]


def _victim(frame: Frame, report: Report, what: str) -> list[Html]:
    accuracy = report["victim"]["accuracy"]
    if what != "accuracy":
        return []
    y = frame.y(accuracy)
    label = f"victim {100 * accuracy:.1f} %"
    return [
        tag("line", x1=LEFT, x2=frame.right, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="victim"),
        tag("text", label, x=LEFT + 6, y=f"{y - 5:.1f}", class_="name"),
    ]


def _draw(frame: Frame, curve: Curve) -> Html:
    if len(curve.queries) == 1:
        place = {"cx": f"{frame.x(curve.queries[0]):.1f}", "cy": f"{frame.y(curve.mean[0]):.1f}"}
        return tag("g", tag("circle", r=3.5, **place), class_=curve.style)
    single = [tag("path", d=_path(frame, x, y), class_="seed") for x, y in curve.runs]
    mean = tag("path", d=_path(frame, curve.queries, curve.mean), class_="mean")
    return tag("g", *(single if len(single) > 1 else []), mean, class_=curve.style)


def _path(frame: Frame, queries: np.ndarray, found: np.ndarray) -> str:
    points = zip(queries, found, strict=True)
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def _labels(frame: Frame, curves: list[Curve]) -> list[Html]:
    """A name beside the end of each curve, moved so that none lies on another."""
    order = sorted(curves, key=lambda c: -c.mean[-1])
    places = [frame.y(c.mean[-1]) for c in order]
    spread = _spread(places, lowest=frame.height - BOTTOM)
    space = int((frame.width - frame.right - 26) / 7)
    drawn = []
    for curve, end, place in zip(order, places, spread, strict=True):
        start = frame.x(curve.queries[-1])
        leader = f"M{start:.1f} {end:.1f}L{frame.right + 16} {place:.1f}"
        drawn.append(tag("path", d=leader, class_="leader"))
        where = {"x": frame.right + 20, "y": f"{place + 4:.1f}"}
        drawn.append(tag("text", curve.label(space), class_=f"name {curve.style}", **where))
    return drawn


def _spread(places: list[float], lowest: float) -> list[float]:
    """Places from top to bottom, at least LINE apart and none below `lowest`, if there is room."""
    spread: list[float] = []
    for place in places:
        spread.append(max([place, *(p + LINE for p in spread[-1:])]))
    for i in reversed(range(len(spread))):
        spread[i] = min(spread[i], lowest - LINE * (len(spread) - 1 - i))
    return spread
