"""Means over seeds and 95 % confidence intervals of them."""

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.stats


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval of it, by Student's t; NaN for one value."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and half the 95 % interval of it by Welch's t.

    Args:
      first: at least two values.
      second: at least two values, whose mean is taken away.
    """
    mean = statistics.fmean(first) - statistics.fmean(second)
    parts = [(statistics.variance(v) / len(v), len(v) - 1) for v in (first, second)]
    squared = sum(part for part, _ in parts)
    if squared == 0:
        return mean, 0.0
    freedom = squared**2 / sum(part**2 / degrees for part, degrees in parts)
    return mean, float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(squared)
