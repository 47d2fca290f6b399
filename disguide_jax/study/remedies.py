"""What would help: defences, judged by the strongest attack that is left and by their price."""

from typing import NamedTuple

from disguide_jax.study.findings import (
    Cell,
    Report,
    advantage,
    defences,
    fidelity,
    finished,
    named,
    points,
    strongest,
    weakness,
)


class Help(NamedTuple):
    """What a defence does to the strongest attack, and what honest users pay for it."""

    defence: str
    attack: Cell  # the strongest that is left
    lowering: float  # of the fidelity of the strongest attack, a fraction
    half: float | None  # half the 95 % interval of it; None with fewer than three seeds
    loss: float | None  # of accuracy on real images, a fraction; None: not known

    @property
    def counts(self) -> bool:
        """Whether the fidelity is lowered by more than the interval, as far as there is one."""
        return self.lowering > (self.half or 0)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """What is larger for a defence that lowers fidelity more for what it costs."""
        if self.loss is None:
            return False, 0, self.lowering
        worth = self.lowering / self.loss if self.loss > 0 else float("inf")
        return True, worth, self.lowering


def defended(report: Report, defence: str) -> list[Cell]:
    """The attacks that are left behind a defence, the strongest first.

    Where a defence cannot apply to labels, an attack on labels is what it is without one.
    """
    untouched = {
        c["attack"]
        for c in report["cells"]
        if c["defence"] == defence and c["state"] == "cannot" and c["answers"] == "hard"
    }
    free = [c for c in finished(report) if c["answers"] == "hard" and c["attack"] in untouched]
    return sorted([*finished(report, defence), *free], key=weakness)


def helps(report: Report) -> list[Help]:
    """The defences that can be judged, the one first that lowers most for what it costs.

    A defence is judged where the attack that is strongest without one has run behind it, or
    cannot, and no other attack behind it failed, which may be the strongest that is left.
    """
    best = strongest(report)
    if best is None:
        return []
    found = []
    for defence in defences(report):
        same = [
            c
            for c in report["cells"]
            if c["defence"] == defence
            and (c["attack"], c["answers"]) == (best["attack"], best["answers"])
        ]
        left = defended(report, defence)
        failed = any(c["state"] == "failed" for c in report["cells"] if c["defence"] == defence)
        if left and same and not failed:
            lowering, half = advantage(best, left[0])
            found.append(Help(defence, left[0], lowering, half, loss(report, defence)))
    return sorted(found, key=lambda item: item.rank, reverse=True)


def loss(report: Report, defence: str) -> float | None:
    """How much accuracy honest users lose to a defence, a fraction; None: not known."""
    price = report["defences"].get(defence, {})
    if price.get("accuracy") is None or price.get("defended_accuracy") is None:
        return None
    return float(price["accuracy"] - price["defended_accuracy"])


def advice(report: Report) -> list[str]:
    """What would help most, in sentences with both numbers, or that nothing does."""
    best, judged = strongest(report), helps(report)
    if best is None:
        return ["Nothing can be said, as no attack finished."]
    if not defences(report):
        return ["No defence was measured."]
    said = []
    useful = [item for item in judged if item.counts]
    if useful:
        said.append("Most for what it costs: " + _praise(report, best, useful[0]))
        most = max(useful, key=lambda item: item.lowering)
        if most is not useful[0]:
            said.append("Most at any price: " + _praise(report, best, most))
    elif judged:
        known = any(item.half is not None for item in judged)
        beyond = " by more than the seeds differ (95 % interval)" if known else ""
        said.append(
            f"No defence that was measured lowers the fidelity of the strongest attack{beyond}."
        )
    if any(item.half is None for item in judged):
        said.append(
            "With fewer than three seeds no interval can be given: the difference may be chance."
        )
    left = [name for name in defences(report) if name not in [item.defence for item in judged]]
    if left:
        said.append(f"Not judged, because the runs are missing or failed: {', '.join(left)}.")
    return said


def _praise(report: Report, best: Cell, item: Help) -> str:
    attack = "the strongest attack"
    if (item.attack["attack"], item.attack["answers"]) != (best["attack"], best["answers"]):
        attack += f" that is left ({named(item.attack)})"
    if item.loss is None:
        why = report["defences"].get(item.defence, {}).get("why") or "it was not measured"
        cost = f"What honest users lose is not known: {why}."
    else:
        own, kept = (report["defences"][item.defence][k] for k in ("accuracy", "defended_accuracy"))
        lost = f"{points(item.loss, None)} of" if item.loss > 0 else "no"
        cost = (
            f"Honest users lose {lost} accuracy ({100 * own:.1f} % without it, "
            f"{100 * kept:.1f} % with it)."
        )
    before, after = (f"{100 * fidelity(cell):.1f} %" for cell in (best, item.attack))
    return (
        f"the defence {item.defence} leaves {attack} a fidelity of {after} in place of {before}, "
        f"{points(item.lowering, item.half)} less. {cost}"
    )
