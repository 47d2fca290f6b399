"""Notices a run that is stuck, from what an attacker sees: no test image is asked.

The paper's own worry (Section 6): "DisGUIDE could theoretically get stuck in local minima, as
models could agree on incorrect predictions completely. A possible solution is to retrain."
Every line of the log is examined, and what holds in PATIENCE lines on end is reported:

| symptom   | what is seen                                            | what a restart makes anew |
|-----------|---------------------------------------------------------|---------------------------|
| agreement | the clones agree on all that the generator makes        | generator and clones      |
| classes   | the victim names hardly more than one class             | generator                 |
| saturated | the generator's pixels are black or white and no others | generator                 |
"""

import math
from collections.abc import Sequence
from typing import Any

PATIENCE = 3  # lines of the log
LEAST_DISAGREEMENT = 0.01  # standard deviation of the clones' votes, summed over the classes
LEAST_CLASSES = 1.5  # the exponential of the entropy of the victim's answers
MOST_SATURATION = 0.99  # share of the pixels beyond SATURATED
SATURATED = 0.99  # of pixels in [-1, 1]

EXPLANATIONS = {
    "agreement": "the clones agree on all that the generator makes",
    "classes": "the victim names hardly more than one class",
    "saturated": "the generator's pixels are black or white and no others",
}


def effective_classes(shares: Sequence[float]) -> float:
    """How many classes are named as often as each other: exp(entropy), from 1 to K.

    Args:
      shares: of the classes among the victim's answers, [K], summing to 1.
    """
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def symptoms(line: dict[str, Any]) -> list[str]:
    """What is wrong in one line of the log; metrics that it does not have are not judged."""
    shares = line.get("victim/class_share", [])
    found = {
        "agreement": len(shares) > 1
        and line.get("gen/disagreement", 1.0) * len(shares) < LEAST_DISAGREEMENT,
        "classes": len(shares) > 1 and effective_classes(shares) < LEAST_CLASSES,
        "saturated": line.get("gen/saturation", 0.0) > MOST_SATURATION,
    }
    return [name for name, present in found.items() if present]


def count(lines_on_end: dict[str, int], line: dict[str, Any]) -> dict[str, int]:
    """In how many lines on end, up to this one, each symptom has been there."""
    return {name: lines_on_end.get(name, 0) + 1 for name in symptoms(line)}


def stuck(lines_on_end: dict[str, int]) -> list[str]:
    """Symptoms that have lasted long enough."""
    return [name for name, lines in lines_on_end.items() if lines >= PATIENCE]


def explain(stuck: Sequence[str]) -> str:
    """The symptoms in words."""
    return " and ".join(EXPLANATIONS[name] for name in stuck)
