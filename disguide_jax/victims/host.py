"""Victims on the host: a Python function, an ONNX file, a service. Images in, answers out.

All take uint8 images [N, H, W, channels] and return probabilities [N, K] or labels [N].
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Count = Callable[[int], None]
"""It is called with n before n images are sent once more, or with -n after it turned out that n never
were. It may raise: then nothing more is sent."""


class Endpoint(Protocol):
    """Whoever answers, on the host."""

    name: str  # as the configuration has it, for messages
    fingerprint: str  # of its content where that can be seen, or else of its name

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels], checked against the contract.

        The caller has counted the images as sent once.

        Raises:
          UserError: it fails, or answers what is not agreed; says what came.
        """

    def close(self) -> None:
        """Gives back what it holds, connections above all."""
