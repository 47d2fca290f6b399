"""The label histogram asks whether the classes of queries are those of honest ones.

Queries are counted by class in windows, one after the other, and each full window is compared
with what honest users ask by Pearson's chi-squared test.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from disguide_jax.victims.detectors.kind import Alarm, Kind, Real

IN_A_CLASS = 20  # queries of a window, on average: the test needs 5 or more
LEAST_P = 1e-6  # honest classes give less in one window of a million


class LabelHistogram:
    """Watches a stream; see `Detector`. It holds two numbers for each class.

    Args:
      prior: how often honest queries are of each class, [K], above 0; they need not sum to 1.
      window: queries that are tested together; 0: IN_A_CLASS for each class.
      least_p: an alarm is a window that is less probable.

    Raises:
      ValueError: a class has no prior.
    """

    def __init__(self, prior: np.ndarray, *, window: int = 0, least_p: float = LEAST_P):
        prior = np.asarray(prior, float)
        if not (prior > 0).all():
            raise ValueError(f"the prior is {prior}; it must be above 0 in every class")
        self._window, self._least_p = window or IN_A_CLASS * len(prior), least_p
        self._expected = prior / prior.sum() * self._window
        self._counts = np.zeros(len(prior), int)
        self._num_seen = 0
        self._alarm: Alarm | None = None

    @property
    def num_bytes(self) -> int:
        """What it holds at most, however long the stream."""
        return self._expected.nbytes + self._counts.nbytes

    def observe(self, images: np.ndarray, labels: np.ndarray) -> Alarm | None:
        """Looks at the next queries, see `Detector`; images are not looked at."""
        del images
        while len(labels) and not self._alarm:
            part = labels[: self._window - self._counts.sum()]
            labels = labels[len(part) :]
            self._counts += np.bincount(part, minlength=len(self._counts))
            self._num_seen += len(part)
            if self._counts.sum() == self._window:
                self._test()
        return self._alarm

    def _test(self) -> None:
        p = chi_squared_p(self._counts, self._expected)
        if p < self._least_p:
            most = int((self._counts - self._expected).argmax())
            share, usual = self._counts[most] / self._window, self._expected[most] / self._window
            why = f"class {most} in {share:.0%} of {self._window:,} queries, usually {usual:.0%}"
            self._alarm = Alarm(self._num_seen, f"{why}: p is {p:.1g}")
        self._counts[:] = 0


def chi_squared_p(counts: np.ndarray, expected: np.ndarray) -> float:
    """How probable counts [K] that differ so much, or more, from expected ones are."""
    statistic = (np.square(counts - expected) / expected).sum()
    return float(stats.chi2.sf(statistic, len(counts) - 1))


def calibrate(real: Real) -> Callable[[], LabelHistogram]:
    """Makes detectors with the classes of real images as their prior, each one counted once more.

    The one more keeps a class that none of them has from being impossible.
    """
    prior = 1 + np.bincount(real.labels, minlength=real.num_classes)
    return lambda: LabelHistogram(prior)


KIND = Kind("label_histogram", calibrate)
