"""What the log of a finished run says about clones that have stopped learning.

Like the guard it asks no test image: an attacker has what is looked at here. The limits are
where runs on Fashion-MNIST that ended badly part from those that ended well, see the README.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from disguide_jax.settings import is_among

LEAST_SHARE = 0.25  # of an even share of the answers, below which a class is hardly seen
LEAST_FALL = 0.1  # of the clones' loss where their rate falls; 0.2 to 0.3 where the rate suits
NUM_LINES = 2  # of the log, before and after

FOR_UNSEEN_CLASSES = {  # key: what to do with it
    "query_budget": "send more",
    "clones.learning_rate": "lower clones.learning_rate",
    "generator.diversity_weight": "raise generator.diversity_weight",
    "disguide.shapes": "raise disguide.shapes",
}
FOR_UNMOVED_LOSS = {
    "clones.learning_rate": "raise clones.learning_rate",
    "replay.batches": "raise replay.batches",
    "clones.model": "take a larger clones.model",
}


def advise(lines: Sequence[dict[str, Any]], ignored: Sequence[str] = ()) -> list[str]:
    """The likely causes and what to change, in words; empty where nothing is conspicuous.

    Args:
      lines: of the log, from the start of the run.
      ignored: keys that the method makes no use of, as `Method.ignores` has them.
    """
    found = [
        (unseen_classes(lines), FOR_UNSEEN_CLASSES),
        (unmoved_loss(lines), FOR_UNMOVED_LOSS),
    ]
    return [f"{cause}; {_one_of(ways, ignored)}" for cause, ways in found if cause]


def _one_of(ways: dict[str, str], ignored: Sequence[str]) -> str:
    """What can be done, of ways by their key, where some keys are ignored."""
    *others, last = [way for key, way in ways.items() if not is_among(key, ignored)]
    return f"{', '.join(others)} or {last}"


def unseen_classes(lines: Sequence[dict[str, Any]]) -> str:
    """What to say of classes that the victim has hardly named."""
    shares = np.array(
        [line["victim/class_share"] for line in lines if "victim/class_share" in line]
    )
    if not len(shares):
        return ""
    mean = shares.mean(axis=0)
    rare = [k for k, share in enumerate(mean) if share < LEAST_SHARE / len(mean)]
    if not rare:
        return ""
    named = ", ".join(f"{k} ({mean[k]:.1%})" for k in rare[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return f"of the answers hardly any named class {named}{more}: what is not seen is not learnt"


def unmoved_loss(lines: Sequence[dict[str, Any]]) -> str:
    """What to say of a loss that stays where it is when the rate falls."""
    told = [line for line in lines if {"clones/loss", "clones/learning_rate"} <= line.keys()]
    rates = [line["clones/learning_rate"] for line in told]
    drops = [i for i in range(1, len(rates)) if rates[i] < 0.5 * rates[i - 1]]
    if not drops or not NUM_LINES <= drops[0] <= len(told) - NUM_LINES:
        return ""
    at = drops[0]
    if rates[at - NUM_LINES] != rates[at - 1]:  # a cosine, whose last falls are steep
        return ""
    before, after = (
        np.mean([line.get("clones/replay_loss", line["clones/loss"]) for line in part])
        for part in (told[at - NUM_LINES : at], told[at : at + NUM_LINES])
    )
    fall = (before - after) / max(before, 1e-9)
    if after == 0 or fall >= LEAST_FALL:
        return ""
    return (
        f"the clones' loss {'fell by only' if fall > 0 else 'rose by'} {abs(fall):.0%} when their "
        "rate fell: the rate was too low to keep up with the generator, or the clones are too small"
    )
