"""Victims on the host: a Python function, an ONNX file, a service. Images in, answers out.

All take uint8 images [N, H, W, channels] and return probabilities [N, K] or labels [N].
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from disguide_jax.core import named
from disguide_jax.errors import UserError
from disguide_jax.victims.contract import Contract

KEY = "config.victim.endpoint"
PYTHON = "python:"

Count = Callable[[int], None]
"""It is called with n before n images are sent once more, with 0 before those are tried again
that never left, or with -n when it turns out that n never did. It may raise: then nothing more
is sent."""


class Endpoint(Protocol):
    """Whoever answers, on the host."""

    name: str  # as the configuration has it, for messages

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels], checked against the contract.

        The caller has counted the images as sent once.

        Raises:
          UserError: it fails, or answers what is not agreed; says what came.
        """

    def close(self) -> None:
        """Gives back what it holds, connections above all."""


class Function:
    """An endpoint that is a function in this process.

    Args:
      name: for messages.
      function: of uint8 images [N, H, W, channels]; returns probabilities [N, K] or labels [N].
      contract: that its answers must keep.
    """

    def __init__(self, name: str, function: Callable[[np.ndarray], Any], contract: Contract):
        self.name, self._function, self._contract = name, function, contract

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels].

        Raises:
          UserError: it raises something, or its answers break the contract.
        """
        del count  # it is called once
        try:
            answers = self._function(images.copy())  # it may write into them
        except Exception as error:
            raise UserError(f"{self.name} raised {named.in_a_line(error)}") from error
        return self._contract.check(answers, len(images), self.name)

    def close(self) -> None:
        """Has nothing to give back."""


def find_function(name: str) -> Callable[[np.ndarray], Any]:
    """The function that python:package.module:function names.

    Raises:
      UserError: there is no such module or function, or the module fails.
    """
    module, colon, path = name.removeprefix(PYTHON).partition(":")
    if not module or not colon or not path:
        raise UserError(f"{KEY} is {name!r}; it must be {PYTHON}package.module:function")
    found = named.find(name.removeprefix(PYTHON), said=f"{KEY}: {name}")
    if not callable(found):
        raise UserError(f"{KEY}: {name}: it is a {type(found).__name__}, not a function")
    return found
