"""What a defence is: it stands between a victim and whoever asks, and changes what is answered.

A defence sees what a provider sees, images and probabilities, of one request and of no other. It
is deterministic: who asks about the same image again is answered the same, so that nothing is
averaged out, and a run that continues is the run that it was.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

from flax import struct

from disguide_jax.core.types import Array, Task
from disguide_jax.files.datasets import Split
from disguide_jax.options import VictimConfig


class Defence(struct.PyTreeNode, abc.ABC):
    """A defence with its numbers, a pytree that can be jitted and vmapped."""

    @abc.abstractmethod
    def __call__(self, images: Array, probs: Array) -> Array:
        """What is sent in place of probabilities.

        Args:
          images: that were asked about, [N, H, W, channels], floats as the victim gets them.
          probs: the victim's, [N, K].

        Returns:
          Probabilities [N, K], of which some may be 0 for being hidden, or labels [N].
        """

    def read(self, sent: Array) -> Array:
        """What was sent as whole probabilities [N, K], as an attacker reads it who knows how."""
        return sent


class Owner(NamedTuple):
    """What the owner of a victim has."""

    victim: VictimConfig  # with the numbers of its defence
    task: Task
    train_split: Callable[[], Split]  # labelled images; read only where they are needed


def probabilities_only(config: VictimConfig) -> tuple[str, ...]:
    """The `Kind.changes` of a defence that leaves the likeliest class as it is."""
    del config
    return ("soft",)


def both(config: VictimConfig) -> tuple[str, ...]:
    """The `Kind.changes` of a defence that changes the likeliest class, too."""
    del config
    return ("soft", "hard")


class Kind(NamedTuple):
    """All that is known of a defence outside its file."""

    name: str  # config.victim.defence
    keys: tuple[str, ...]  # of the victim, that it reads
    make: Callable[[Owner], Defence]
    about: Callable[[VictimConfig], str]  # what it does in words, with its numbers
    changes: Callable[[VictimConfig], tuple[str, ...]]  # the config.labels that it can defend
    usual: dict[str, int] = {}  # noqa: RUF012 - what to try of keys that have no default
    learns: bool = False  # from labelled images of a data set
