"""What may stand between a victim and whoever asks.

A defence is a file with a `KIND` and a line in `DEFENCES`. It stands behind a victim that JAX can
trace, and is traced with it, or behind an endpoint on the host: the same function for both.
Without one there is nothing in between.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import struct

from disguide_jax.core import answers, pixels
from disguide_jax.core.types import Array
from disguide_jax.victims.defences import (
    high_confidence,
    label_only,
    misinformation,
    noise,
    reverse_sigmoid,
    rounding,
    top_k,
)
from disguide_jax.victims.defences.kind import Defence, Kind, Owner
from disguide_jax.victims.host import Count, Endpoint
from disguide_jax.victims.network import Victim

__all__ = ["DEFENCES", "Defence", "Defended", "DefendedEndpoint", "Kind", "Owner", "Traced"]

_KINDS = (
    rounding.KIND,
    top_k.KIND,
    label_only.KIND,
    noise.KIND,
    high_confidence.KIND,
    reverse_sigmoid.KIND,
    misinformation.KIND,
)
DEFENCES: dict[str, Kind] = {kind.name: kind for kind in _KINDS}


class Defended(struct.PyTreeNode):
    """A victim that JAX can trace, behind a defence: it is asked as one without is."""

    undefended: Victim  # answers with probabilities
    defence: Defence
    hard_labels: bool = struct.field(pytree_node=False)

    def __call__(self, images: Array) -> Array:
        """Answers a query.

        Args:
          images: [N, H, W, channels], see `Victim`.

        Returns:
          Probabilities [N, K], as an attacker reads what the defence sends, or int32 labels [N].
        """
        probs = self.undefended(images)
        return answer(self.defence, images, probs, hard_labels=self.hard_labels)

    def to_input_space(self, images: Array) -> Array:
        """Real images in [-1, 1], for evaluation, as the attacker's clones must see them."""
        return self.undefended.to_input_space(images)


Traced = Victim | Defended


def answer(defence: Defence, images: Array, probs: Array, *, hard_labels: bool) -> Array:
    """What an attacker gets in place of probabilities [N, K]: the same, or labels [N]."""
    sent = defence(images, probs)
    return answers.to_labels(sent) if hard_labels else defence.read(sent)


class Changed:
    """An endpoint of whose answers something is made before anyone sees them.

    Args:
      endpoint: answers with probabilities.
      change: images [N, H, W, channels] uint8, probabilities [N, K] -> what is answered.
    """

    def __init__(self, endpoint: Endpoint, change: Callable[[np.ndarray, np.ndarray], Array]):
        self.name, self._endpoint, self._change = endpoint.name, endpoint, change

    def ask(self, images: np.ndarray, count: Count) -> np.ndarray:
        """Answers to uint8 images [N, H, W, channels], see `Endpoint`.

        Raises:
          UserError: the endpoint fails, or answers what is not agreed.
        """
        return np.asarray(self._change(images, self._endpoint.ask(images, count)))

    def close(self) -> None:
        """Gives back what the endpoint holds."""
        self._endpoint.close()


class DefendedEndpoint(Changed):
    """An endpoint behind a defence, which is computed here.

    Args:
      endpoint: answers with probabilities.
      defence: of these.
      hard_labels: the attacker gets labels.
    """

    def __init__(self, endpoint: Endpoint, defence: Defence, *, hard_labels: bool):
        whole = functools.partial(answer, hard_labels=hard_labels)
        compiled = jax.jit(lambda defence, images, p: whole(defence, pixels.decode(images), p))
        super().__init__(endpoint, lambda images, probs: compiled(defence, images, probs))
        # What its owner sees, in the form that the attacker gets.
        plain = jax.jit(answers.to_labels) if hard_labels else (lambda probs: probs)
        self.undefended = Changed(endpoint, lambda images, probs: plain(probs))
