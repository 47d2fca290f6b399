"""What an audit found, in numbers and in sentences: functions of report.json alone."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from disguide_jax.study.intervals import difference, mean_and_interval

Report = dict[str, Any]  # of format 1, as the audit writes it
Cell = dict[str, Any]  # one of report["cells"]

FEWEST_SEEDS = 3  # of which an interval is given
ROLES = {"baseline": "made-up images", "upper_bound": "real images"}
ANSWERS = {
    "soft": "shown the probabilities of all classes",
    "hard": "shown the likeliest class alone",
}


class Reached(NamedTuple):
    """Queries that an attack needs to a part of the victim's accuracy."""

    queries: list[int]  # of the seeds that reached it
    num_runs: int


def values(cell: Cell, name: str) -> list[float]:
    """A number of each run of a cell that has it."""
    return [run[name] for run in cell["runs"] if run[name] is not None]


def shown(found: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean and 95 % interval, "89.0 ± 0.4"; each value where they are fewer than three."""
    if len(found) < FEWEST_SEEDS:
        return ", ".join(f"{scale * value:,.{digits}f}" for value in found)
    mean, half = mean_and_interval(found)
    return f"{scale * mean:,.{digits}f} ± {scale * half:,.{digits}f}"


def fidelity(cell: Cell) -> float:
    """The mean over seeds, from 0 to 1."""
    return statistics.fmean(values(cell, "fidelity"))


def finished(report: Report, defence: str = "", role: str = "attack") -> list[Cell]:
    """The cells of a role behind a defence ("": none) that have run, the most faithful first."""
    cells = (c for c in report["cells"] if c["defence"] == defence and c["role"] == role)
    return sorted((c for c in cells if c["state"] == "done" and c["runs"]), key=weakness)


def weakness(cell: Cell) -> float:
    """What is smaller for a cell that is more faithful, to sort by."""
    return -fidelity(cell)


def strongest(report: Report) -> Cell | None:
    """The attack with the highest fidelity where nothing defends the victim."""
    return next(iter(finished(report)), None)


def beside(report: Report, cell: Cell, role: str) -> Cell | None:
    """The baseline or the upper bound of an attack, with the same answers and no defence."""
    cells = finished(report, role=role)
    return next((c for c in cells if c["answers"] == cell["answers"]), None)


def reached(cell: Cell, part: str) -> Reached:
    """The queries to a part of the victim's accuracy, such as "0.9"."""
    queries = [run["queries_to"].get(part) for run in cell["runs"]]
    return Reached([q for q in queries if q is not None], len(queries))


def queries_of(cell: Cell) -> float:
    """The mean over seeds of all queries that were sent."""
    return statistics.fmean(values(cell, "queries"))


def money(report: Report, queries: float) -> float | None:
    """What queries cost, in the currency of the price; None without one."""
    price = report["price_per_1000"]
    return None if price is None else queries / 1000 * price


def days(report: Report, queries: float) -> float | None:
    """How long queries take; None without a rate."""
    rate = report["queries_per_second"]
    return None if rate is None else queries / rate / 86400


def in_money(amount: float) -> str:
    """An amount with two decimals, or that it is less than they can say."""
    return "under 0.01" if 0 < amount < 0.005 else f"{amount:,.2f}"


def in_days(amount: float) -> str:
    """Days, with two digits at least."""
    if amount >= 1:
        return f"{amount:,.1f} days" if amount < 100 else f"{amount:,.0f} days"
    return f"{amount:.2g} days"


def in_time(amount: float) -> str:
    """Days, and below one of them hours, minutes or seconds beside."""
    if amount >= 1:
        return in_days(amount)
    seconds = amount * 86400
    size, unit = next(
        ((s, u) for s, u in ((3600, "hour"), (60, "minute")) if seconds >= s), (1, "second")
    )
    number = f"{seconds / size:.2g}"
    return f"{in_days(amount)} ({number} {unit}{'s' * (number != '1')})"


def first_alarm(cell: Cell) -> tuple[int, str] | None:
    """The query of the earliest alarm and the detector that gave it."""
    detectors = cell["detectors"] or {}
    alarms = [(d["alarm"], name) for name, d in detectors.items() if d["alarm"] is not None]
    return min(alarms, default=None)


def verdict(report: Report) -> str:
    """One sentence: what was copied, by which attack, for how much, beside other images."""
    best = strongest(report)
    if best is None:
        return (
            "No attack on the undefended victim finished, so that this audit cannot say how much "
            "of the victim can be copied."
        )
    queries = queries_of(best)
    spent = [f"With {queries:,.0f} queries", _spent(report, queries)]
    copied = (
        f"the attack {best['attack']}, {ANSWERS[best['answers']]}, made a copy that "
        f"answers like the victim on {100 * fidelity(best):.1f} % of the test images"
    )
    return f"{', '.join(filter(None, [*spent, copied]))}; {_compared(report, best)}."


def _spent(report: Report, queries: float) -> str:
    """The price and the time of queries in words, as far as they are known."""
    cost, time = money(report, queries), days(report, queries)
    words = [] if cost is None else [f"at a price of {in_money(cost)}"]
    words += [] if time is None else [f"within {in_time(time)}"]
    return " and ".join(words)


def _compared(report: Report, best: Cell) -> str:
    found = {images: beside(report, best, role) for role, images in ROLES.items()}
    if not any(found.values()):
        return f"copies trained on {' or on '.join(found)} were not measured"
    return ", and ".join(
        f"a copy trained on {cell['learnt_from']} does so on {100 * fidelity(cell):.1f} %"
        if cell
        else f"a copy trained on {images} was not measured"
        for images, cell in found.items()
    )


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """What else to know of the strongest attack: headings and a sentence each."""
    best = strongest(report)
    if best is None:
        return
    yield (
        "Fidelity",
        f"The copy names the same class as the victim on {shown(values(best, 'fidelity'))} % of "
        "the test images. This share is called fidelity.",
    )
    accuracy, own = values(best, "accuracy"), report["victim"]["accuracy"]
    if accuracy and own is not None:
        mean = statistics.fmean(accuracy)
        part = f", which is {100 * mean / own:.1f} % of the victim's accuracy" if own else ""
        yield (
            "Accuracy",
            f"The copy is right on {100 * mean:.1f} % of the test images and the victim on "
            f"{100 * own:.1f} %{part}.",
        )
        yield "How soon", _how_soon(report, best)
    baseline = beside(report, best, "baseline")
    if baseline is not None:
        yield "What the method adds", _added(best, baseline)
    pgd = [run["transfer"]["pgd"] for run in best["runs"] if run["transfer"]]
    if pgd:
        success = statistics.fmean(p["success"] for p in pgd)
        yield (
            "What the copy is good for",
            "Images that were changed until the copy errs (by PGD, see the words below) mislead "
            f"the victim in {100 * success:.1f} % of cases.",
        )
    if best["detectors"]:
        yield "Would it be noticed?", _noticed(report, best)


def _how_soon(report: Report, cell: Cell) -> str:
    found = reached(cell, "0.9")
    if not found.queries:
        return "No seed reached 90 % of the victim's accuracy."
    mean = statistics.fmean(found.queries)
    whole = len(found.queries) == found.num_runs
    who = "It" if whole else f"{len(found.queries)} of {found.num_runs} seeds"
    after = f"{who} reached 90 % of the victim's accuracy after {mean:,.0f} queries"
    return f"{', '.join(filter(None, [after, _spent(report, mean)]))}."


def _added(best: Cell, baseline: Cell) -> str:
    lowered, half = advantage(best, baseline)
    said, made_up = points(lowered, half), baseline["learnt_from"]
    if lowered <= (half or 0):
        return f"No more than {made_up} give, as far as the seeds can tell: {said} of fidelity."
    return f"Beside a copy trained on {made_up}, {said} of fidelity."


def _noticed(report: Report, cell: Cell) -> str:
    alarm = first_alarm(cell)
    if alarm is None:
        return "No detector gave an alarm."
    query, detector = alarm
    said = f"The first alarm was given at query {query:,}, by the detector {detector}."
    false = report["false_alarms"].get(detector)
    if not false:
        return said
    return (
        f"{said} Of {false['orders']:,} streams of real images, it took {false['alarms']:,} for an "
        "attack."
    )


def advantage(first: Cell, second: Cell) -> tuple[float, float | None]:
    """How much more fidelity the first has, and half the interval of it."""
    pair = values(first, "fidelity"), values(second, "fidelity")
    if min(map(len, pair)) < FEWEST_SEEDS:
        return fidelity(first) - fidelity(second), None
    return difference(*pair)


def points(value: float, half: float | None) -> str:
    """A difference of fractions in percentage points, with half its interval if there is one."""
    interval = "" if half is None else f" ± {100 * half:.1f}"
    return f"{100 * value:.1f}{interval} percentage points"


def defences(report: Report) -> list[str]:
    """Every defence of a cell or with a price, in the order of the cells."""
    names = [c["defence"] for c in report["cells"] if c["defence"]]
    return list(dict.fromkeys([*names, *report["defences"]]))


def named(cell: Cell) -> str:
    """The attack of a cell and what it is told, such as "disguide, soft answers"."""
    return f"{cell['attack']}, {cell['answers']} answers"


def not_tested(report: Report) -> Iterator[str]:
    """What this audit does not know: what it was told, and what its numbers lack."""
    yield from report["not_tested"]
    best = strongest(report)
    if report["victim"]["accuracy"] is None:
        yield "Accuracy: there were no labelled test images, so that only fidelity is known."
    if report["price_per_1000"] is None:
        yield "Money: no price of queries was given."
    if report["queries_per_second"] is None:
        yield "Time: no rate of queries was given."
    if best is not None:
        for role, images in ROLES.items():
            if beside(report, best, role) is None:
                yield f"Comparison with {images}: no such run with the same answers finished."
        if not any(run["transfer"] for run in best["runs"]):
            yield "Adversarial examples: whether those made on the copy mislead the victim."
        if not best["detectors"]:
            yield "Detection: no detector watched the queries of the strongest attack."
    if not defences(report):
        yield "Defences: none was tried."
    yield from _unfinished(report["cells"])


def _unfinished(cells: Iterable[Cell]) -> Iterator[str]:
    failed = sum(c["state"] == "failed" for c in cells)
    if failed:
        yield f"{failed} of {len(list(cells))} cells failed; their reasons stand in the details."
