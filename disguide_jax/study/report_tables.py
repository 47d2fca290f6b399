"""The tables of an audit's report."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from disguide_jax.study import findings, remedies
from disguide_jax.study.findings import Cell, Report
from disguide_jax.study.markup import Column, Entry, Html, table, tag

PARTS = {"0.8": "80 %", "0.9": "90 %", "0.95": "95 %"}
ROLES = {"attack": "", "baseline": "baseline", "upper_bound": "upper bound"}
INTERVAL = "± is half the 95 % interval over seeds; of fewer than three each value is shown."


def named(cell: Cell) -> str:
    """A cell in words, such as "disguide, soft answers, behind round"."""
    behind = f", behind {cell['defence']}" if cell["defence"] else ""
    return f"{findings.named(cell)}{behind}"


def attacks(report: Report) -> Html:
    """The table of the first page: whatever ran, or should have, where nothing defends."""
    priced = report["price_per_1000"] is not None or report["queries_per_second"] is not None
    columns = [
        Column("Attack"),
        Column("Answers"),
        Column("Accuracy, %", number=True),
        Column("Fidelity, %", number=True),
        Column("Queries to 90 % of the victim", number=True),
        *([Column("Cost of all queries", number=True)] if priced else []),
        Column("Victim misled by PGD, %", number=True),
        Column("First alarm, at query", number=True),
    ]
    rows = []
    for cell in _in_order(report):
        role = ": ".join(filter(None, (ROLES[cell["role"]], cell["learnt_from"])))
        row = [Entry(cell["attack"], note=role), Entry(cell["answers"])]
        if not _ran(cell):
            said = Entry({"cannot": "cannot be"}.get(cell["state"], "failed"), link="failed")
            rows.append([*row, said, *[Entry("")] * (len(columns) - 3)])
            continue
        row += [_percent(cell, "accuracy"), _percent(cell, "fidelity")]
        row.append(_reached(report, cell, "0.9", priced=priced))
        if priced:
            row.append(_cost(report, findings.queries_of(cell)))
        rows.append([*row, _transfer(cell, "pgd"), _alarm(cell)])
    caption = (
        f"What each attack reaches with all its queries, without a defence. {INTERVAL} "
        f"{_about_victim(report)}"
    )
    return table(caption, columns, rows)


def _about_victim(report: Report) -> str:
    accuracy = report["victim"]["accuracy"]
    if accuracy is None:
        return "Without labelled test images, accuracy is unknown."
    return f"The victim's own accuracy is {100 * accuracy:.1f} %."


def _in_order(report: Report) -> Iterator[Cell]:
    """The undefended cells: by role, the most faithful first, then what did not finish."""
    for role in ROLES:
        done = findings.finished(report, role=role)
        yield from done
        same = (c for c in report["cells"] if c["role"] == role and not c["defence"])
        yield from (c for c in same if not _ran(c))


def _ran(cell: Cell) -> bool:
    return cell["state"] == "done" and bool(cell["runs"])


def cells(report: Report) -> Html:
    """Every cell, the failed and the impossible among them."""
    columns = [
        *_of_cell(),
        Column("State"),
        Column("Seeds", number=True),
        Column("Accuracy, %", number=True),
        Column("Fidelity, %", number=True),
        Column("Agrees where the victim is right, %", number=True),
        *(Column(f"Queries to {part}", number=True) for part in PARTS.values()),
    ]
    states = {"done": "finished", "failed": "failed", "cannot": "cannot be"}
    rows = []
    for cell in report["cells"]:
        link = "" if cell["state"] == "done" else "failed"
        rows.append(
            [
                *_cell(cell),
                Entry(states[cell["state"]], link=link),
                Entry(str(len(cell["runs"])), len(cell["runs"])),
                *(_percent(cell, k) for k in ("accuracy", "fidelity", "agreement_where_right")),
                *(_reached(report, cell, part) for part in PARTS),
            ]
        )
    caption = (
        f"All cells. {INTERVAL} Queries are to a part of the victim's accuracy, as the mean of the "
        "seeds that reached it."
    )
    return table(caption, columns, rows)


def runs(report: Report) -> Html:
    """One row for each seed of each cell."""
    columns = [
        *_of_cell(),
        Column("Seed", number=True),
        Column("Queries", number=True),
        Column("Accuracy, %", number=True),
        Column("Fidelity, %", number=True),
        Column("Agrees where the victim is right, %", number=True),
        *(Column(f"Queries to {part}", number=True) for part in PARTS.values()),
    ]
    rows = [
        [
            *_cell(cell),
            Entry(str(run["seed"]), run["seed"]),
            _count(run["queries"]),
            *(_fraction(run[k]) for k in ("accuracy", "fidelity", "agreement_where_right")),
            *(_seed_reached(run, part) for part in PARTS),
        ]
        for cell in report["cells"]
        for run in cell["runs"]
    ]
    return table("The final values of every seed, as they were counted.", columns, rows)


def defences(report: Report) -> Iterator[Html]:
    """What each defence costs honest users and does to the strongest attack."""
    names = findings.defences(report)
    if not names:
        yield tag("p", "No defence was tried.")
        return
    columns = [
        Column("Defence"),
        Column("What it does", long=True),
        Column("Accuracy without, %", number=True),
        Column("Accuracy with, %", number=True),
        Column("Honest users lose, points", number=True),
        Column("Answers change by (0 to 2)", number=True),
        Column("Fidelity that is left, %", number=True),
        Column("Lower by, points", number=True),
    ]
    judged = {item.defence: item for item in remedies.helps(report)}
    rows = []
    for name in names:
        price, item = report["defences"].get(name, {}), judged.get(name)
        change, loss = price.get("change"), remedies.loss(report, name)
        about = price.get("about") or _about(report, name)
        left = (Entry(""), Entry(""))
        if item is not None:
            lower = findings.points(item.lowering, item.half).removesuffix(" percentage points")
            fidelity = findings.fidelity(item.attack)
            left = (
                Entry(f"{100 * fidelity:.1f}", fidelity, note=findings.named(item.attack)),
                Entry(lower, item.lowering),
            )
        rows.append(
            [
                Entry(name),
                Entry(about, note=f"No price: {price['why']}" if price.get("why") else ""),
                _fraction(price.get("accuracy")),
                _fraction(price.get("defended_accuracy")),
                Entry("") if loss is None else Entry(f"{100 * loss:.1f}", loss),
                Entry("") if change is None else Entry(f"{change:.3f}", change),
                *left,
            ]
        )
    yield tag(
        "p",
        "The answers' change is the sum over classes of how much each probability changes, as a "
        "mean over real images. Fidelity is of the strongest attack that is left; where a defence "
        "cannot apply to labels, an attacker may still use labels, and this counts.",
    )
    yield table("Defences: their price on real images, and what they do.", columns, rows)


def _about(report: Report, defence: str) -> str:
    return next(c["about_defence"] for c in report["cells"] if c["defence"] == defence)


def detectors(report: Report) -> Iterator[Html]:
    """First alarms on the queries of each cell, and false alarms on real images."""
    rows = [
        [*_cell(cell), Entry(name), *_watched(found)]
        for cell in report["cells"]
        for name, found in (cell["detectors"] or {}).items()
    ]
    if rows:
        columns = [
            *_of_cell(),
            Column("Detector"),
            Column("First alarm, at query", number=True),
            Column("Queries looked at", number=True),
            Column("Why", long=True),
        ]
        yield table("The first alarm of each detector on the queries of a cell.", columns, rows)
    else:
        yield tag("p", "No detector watched the queries.")
    if report["false_alarms"]:
        columns = [
            Column("Detector"),
            Column("False alarms", number=True),
            Column("Random orders", number=True),
            Column("Real images in each", number=True),
        ]
        false = [
            [Entry(name), *(_count(found[k]) for k in ("alarms", "orders", "images"))]
            for name, found in report["false_alarms"].items()
        ]
        yield table("False alarms on real images, sent in random order.", columns, false)
    else:
        yield tag("p", "False alarms on real images were not measured.")


def _watched(found: dict[str, Any]) -> tuple[Entry, Entry, Entry]:
    alarm = found["alarm"]
    said = Entry("none") if alarm is None else _count(alarm)
    return said, _count(found["looked_at"]), Entry(found["why"] or "")


def transfer(report: Report) -> Iterator[Html]:
    """How often adversarial examples made on the copy mislead the victim."""
    rows = []
    for cell in report["cells"]:
        made = [run["transfer"] for run in cell["runs"] if run["transfer"]]
        for way in ("fgsm", "pgd") if made else ():
            epsilon, images = made[0][way]["epsilon"], made[0][way]["images"]
            success = _transfer(cell, way)
            size = Entry(f"{epsilon:.3g}", epsilon)
            rows.append([*_cell(cell), Entry(way.upper()), success, size, _count(images)])
    if not rows:
        yield tag("p", "Adversarial examples were not tried.")
        return
    columns = [
        *_of_cell(),
        Column("Made by"),
        Column("Victim misled, %", number=True),
        Column("Largest change of a pixel (0 to 1)", number=True),
        Column("Images", number=True),
    ]
    caption = f"Images changed to mislead the copy, sent to the victim. {INTERVAL}"
    yield table(caption, columns, rows)


def _of_cell() -> list[Column]:
    return [Column("Attack"), Column("Answers"), Column("Defence")]


def _cell(cell: Cell) -> list[Entry]:
    return [Entry(cell["attack"]), Entry(cell["answers"]), Entry(cell["defence"] or "none")]


def _percent(cell: Cell, name: str) -> Entry:
    return _of_seeds(findings.values(cell, name))


def _transfer(cell: Cell, way: str) -> Entry:
    return _of_seeds([r["transfer"][way]["success"] for r in cell["runs"] if r["transfer"]])


def _of_seeds(found: Sequence[float]) -> Entry:
    return Entry(findings.shown(found), statistics.fmean(found) if found else None)


def _fraction(value: float | None) -> Entry:
    return Entry("") if value is None else Entry(f"{100 * value:.1f}", value)


def _count(value: float | None) -> Entry:
    return Entry("") if value is None else Entry(f"{value:,}", value)


def _cost(report: Report, queries: float) -> Entry:
    """Money, with days below it, or the one that is known."""
    money, days = findings.money(report, queries), findings.days(report, queries)
    if money is None:
        return Entry("" if days is None else findings.in_days(days), days)
    return Entry(findings.in_money(money), money, note=findings.in_days(days) if days else "")


def _reached(report: Report, cell: Cell, part: str, *, priced: bool = False) -> Entry:
    """Queries to a part of the victim's accuracy, how many seeds reached it, and their price."""
    found = findings.reached(cell, part)
    if not found.queries:
        known = bool(findings.values(cell, "accuracy"))
        return Entry("not reached" if known else "")
    mean = statistics.fmean(found.queries)
    some = len(found.queries) < found.num_runs
    notes = [f"{len(found.queries)} of {found.num_runs} seeds"] if some else []
    if priced:
        cost = _cost(report, mean)
        notes += [cost.text, cost.note]
    return Entry(findings.shown(found.queries, 1, 0), mean, note=", ".join(filter(None, notes)))


def _seed_reached(run: dict[str, Any], part: str) -> Entry:
    queries = run["queries_to"].get(part)
    missed = queries is None and run["accuracy"] is not None
    return Entry("not reached") if missed else _count(queries)


def _alarm(cell: Cell) -> Entry:
    if not cell["detectors"]:
        return Entry("")
    alarm = findings.first_alarm(cell)
    return Entry("none") if alarm is None else Entry(f"{alarm[0]:,}", alarm[0], note=alarm[1])
