"""What a detector is: it watches the queries to a victim and tells when they look like an attack.

It sees what a provider sees, images in the order in which they are sent and the classes that the
victim gives them, and is judged by the query at which it first sounds an alarm: on an attack, and
on real images in random order, where it should not.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np


class Alarm(NamedTuple):
    """The first alarm of a detector."""

    query: int  # the number of images that had been sent, 1 for the first
    why: str


class Detector(Protocol):
    """Watches one stream of queries from its beginning."""

    @property
    def num_bytes(self) -> int:
        """What it holds at most, however long the stream."""

    def observe(self, images: np.ndarray, labels: np.ndarray) -> Alarm | None:
        """Looks at the next queries; how they are parted into batches makes no difference.

        Args:
          images: as sent, [N, H, W, channels], uint8 or floats in [-1, 1].
          labels: the victim's classes, [N] integers.

        Returns:
          The first alarm, once there was one; what comes after it is not looked at.
        """


class Real(NamedTuple):
    """Honest queries, which a provider knows: real images and the classes that they get."""

    images: np.ndarray  # [M, H, W, channels] uint8
    labels: np.ndarray  # [M]
    num_classes: int


class Kind(NamedTuple):
    """All that is known of a detector outside its file."""

    name: str
    calibrate: Callable[[Real], Callable[[], Detector]]  # -> what makes a fresh detector
