"""PRADA (Juuti et al., EuroS&P 2019) asks whether distances between queries are normal.

Of each query the distance to the nearest earlier one of its class is taken. Distances between
real images are close to normal; those of made-up ones, which are steps away from each other or
alike, are not. The Shapiro-Wilk statistic W of the distances, without outliers, is compared with a
threshold delta that real images keep.
"""

import collections
from collections.abc import Callable

import numpy as np
from scipy import stats

from disguide_jax.core import pixels
from disguide_jax.victims.detectors.kind import Alarm, Kind, Real

DELTA, MARGIN, ORDERS = 0.95, 0.01, 20  # of the calibration
CAPACITY, WINDOW, LEAST, EVERY = 5_000, 1_000, 100, 10
AT_ONCE = 256  # queries


class _Set:
    """The growing set of one class: queries that were far enough from those before."""

    def __init__(self, capacity: int, num_values: int):
        self._images = np.empty((capacity, num_values), np.float32)
        self._squares = np.empty(capacity, np.float32)
        self._threshold, self._num = 0.0, 0  # of all that were ever added
        self._mean, self._spread = 0.0, 0.0  # of their distances, and the sum of squares around it

    def distances(self, new: np.ndarray) -> Callable[[int], float | None]:
        """A function of rows of `new` [n, D], to be called in order, that gives their distances.

        None is that of the first query of all, which has none before it. What is far enough is
        added, over the oldest when the set is full.
        """
        capacity, squares = len(self._images), np.square(new).sum(axis=1)
        held = min(self._num, capacity)
        apart = np.full((len(new), capacity), np.inf, np.float32)
        apart[:, :held] = self._squares[:held] - 2 * new @ self._images[:held].T
        to_each_other = squares - 2 * new @ new.T  # but for the square of who asks

        def of_row(row: int) -> float | None:
            distance = None
            if self._num:
                nearest = self._images[apart[row].argmin()]
                distance = float(np.linalg.norm(new[row] - nearest))  # the products cancel digits
            if distance is None or distance > self._threshold:
                slot = self._num % capacity
                self._images[slot], self._squares[slot] = new[row], squares[row]
                apart[:, slot] = to_each_other[:, row]
                self._grow(distance or 0.0)
            return distance

        return of_row

    def _grow(self, distance: float) -> None:
        self._num += 1
        before, self._mean = self._mean, self._mean + (distance - self._mean) / self._num
        self._spread += (distance - before) * (distance - self._mean)
        deviation = (self._spread / self._num) ** 0.5
        self._threshold = max(self._threshold, self._mean - deviation)


class Prada:
    """Watches a stream; see `Detector`.

    It holds at most CAPACITY images in float32, shared evenly by the classes, of which the oldest
    of a class make room, and the last WINDOW distances. The paper keeps all. W is looked at after
    every EVERY queries, from LEAST distances on.

    Args:
      num_classes: K, of the victim.
      delta: W below it is an alarm.
    """

    def __init__(self, num_classes: int, delta: float = DELTA):
        self._capacity, self._num_classes = max(1, CAPACITY // num_classes), num_classes
        self._delta, self._sets = delta, dict[int, _Set]()
        self._distances = collections.deque[float](maxlen=WINDOW)
        self._num_seen, self._num_values = 0, 0
        self._alarm: Alarm | None = None
        self.least_w = 1.0  # so far

    @property
    def num_bytes(self) -> int:
        """What it holds at most, once it has seen the size of an image."""
        in_sets = self._num_classes * self._capacity * (self._num_values + 1)
        return 4 * in_sets + 8 * WINDOW

    @property
    def distances(self) -> np.ndarray:
        """The last distances, at most WINDOW, the oldest first."""
        return np.array(self._distances)

    def observe(self, images: np.ndarray, labels: np.ndarray) -> Alarm | None:
        """Looks at the next queries, see `Detector`."""
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self._observe(_as_rows(images[part]), labels[part])
        return self._alarm

    def _observe(self, rows: np.ndarray, labels: np.ndarray) -> None:
        self._num_values = rows.shape[1]
        of_class, number_in_class = {}, np.zeros(len(labels), int)
        for label in np.unique(labels):
            chosen = np.flatnonzero(labels == label)
            number_in_class[chosen] = np.arange(len(chosen))
            held = self._sets.setdefault(int(label), _Set(self._capacity, rows.shape[1]))
            of_class[label] = held.distances(rows[chosen])
        for label, number in zip(labels, number_in_class, strict=True):
            distance = of_class[label](number)
            self._num_seen += 1
            if distance is not None:
                self._distances.append(distance)
            if self._alarm or self._num_seen % EVERY or len(self._distances) < LEAST:
                continue
            w = shapiro_w(self.distances)
            self.least_w = min(self.least_w, w)
            if w < self._delta:
                why = f"W of the last {len(self._distances):,} distances is {w:.3f}"
                self._alarm = Alarm(self._num_seen, f"{why}, below {self._delta:.3f}")


def shapiro_w(distances: np.ndarray) -> float:
    """The Shapiro-Wilk statistic W of distances but for those beyond three deviations.

    It is 1 where they are as normal as can be, and taken to be 0 where all are the same.
    """
    kept = distances[abs(distances - distances.mean()) <= 3 * distances.std()]
    if len(kept) < 3 or np.ptp(kept) <= 1e-6 * abs(kept).max():
        return 0.0
    return float(stats.shapiro(kept).statistic)


def _as_rows(images: np.ndarray) -> np.ndarray:
    """Images as float32 rows [N, D] in [-1, 1]."""
    rows = np.asarray(images, np.float32).reshape(len(images), -1)
    return rows / pixels.HALF_RANGE - 1 if images.dtype == np.uint8 else rows


def calibrate(real: Real) -> Callable[[], Prada]:
    """Makes detectors with the largest delta that real images keep, less a margin.

    They are played in ORDERS random orders, of which an alarm in another is then less likely than
    one in ORDERS. Delta is DELTA at most, the paper's for MNIST.
    """
    least = []
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(len(real.labels))
        watching = Prada(real.num_classes, delta=0.0)
        watching.observe(real.images[order], real.labels[order])
        least.append(watching.least_w)
    delta = min(DELTA, min(least) - MARGIN)
    return lambda: Prada(real.num_classes, delta)


KIND = Kind("prada", calibrate)
