"""What defences cost honest users: how much worse and how different answers to real images are.

The victim is asked about every test image once, without a defence, and each defence changes
these answers. An endpoint is asked, too, beside any budget.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.config import Config, validate
from disguide_jax.core import pixels
from disguide_jax.core.types import Array
from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.files.datasets import Split
from disguide_jax.run import asked
from disguide_jax.victims.defences import DEFENCES, Defence, Kind, Traced
from disguide_jax.victims.host import Endpoint

AT_ONCE = 100  # images


class Price(NamedTuple):
    """The price of a defence on labelled images."""

    accuracy: float  # of the victim itself
    defended_accuracy: float  # an answer with no class above 0 is wrong
    change: float  # the mean over images of sum_k |p'_k - p_k|, from 0 to 2; a label is one-hot

    def __str__(self) -> str:
        accuracies = f"{self.accuracy:.4f} -> {self.defended_accuracy:.4f}"
        return f"accuracy {accuracies}, mean sum |p' - p| {self.change:.4f}"


def price(victim: Traced | Endpoint, defence: Defence, test: Split) -> Price:
    """The price of a defence of a victim that answers with probabilities, on a test set."""
    return price_of(defence, test, *ask(victim, test.images))


def ask(victim: Traced | Endpoint, images: np.ndarray) -> tuple[Array, Array]:
    """Real images as a victim gets them, [M, H, W, channels] floats, and its answers, [M, K].

    Args:
      victim: answers with probabilities.
      images: [M, H, W, channels] uint8.

    Raises:
      UserError: an endpoint fails, or answers what is not agreed.
    """
    if isinstance(victim, Traced):
        given = _in_batches(_given, victim, images=images)
        return given, _in_batches(_answers, victim, images=given)
    batches = range(0, len(images), AT_ONCE)
    answers = [victim.ask(images[i : i + AT_ONCE], lambda num: None) for i in batches]
    return pixels.decode(jnp.asarray(images)), jnp.concatenate(answers)


def price_of(defence: Defence, test: Split, images: Array, probs: Array) -> Price:
    """The price of a defence, of answers that are known already.

    Args:
      defence: that changes them.
      test: M images with their labels.
      images: the same as the victim gets them, [M, H, W, channels] floats.
      probs: what it answers, [M, K].
    """
    sent = _in_batches(_sent, defence, images=images, probs=probs)
    if sent.ndim == 1:
        sent = jax.nn.one_hot(sent, probs.shape[1])
    right = probs.argmax(axis=1) == test.labels
    still_right = (sent.argmax(axis=1) == test.labels) & (sent.max(axis=1) > 0)
    return Price(
        accuracy=int(right.sum()) / len(right),
        defended_accuracy=int(still_right.sum()) / len(right),
        change=float(abs(sent - probs).sum(axis=1).mean()),
    )


_given = jax.jit(lambda victim, images: victim.to_input_space(pixels.decode(images)))
_answers = jax.jit(lambda victim, images: victim(images))
_sent = jax.jit(lambda defence, images, probs: defence(images, probs))


def _in_batches(function: jax.stages.Wrapped, who: object, **rows: Array | np.ndarray) -> Array:
    """What a function makes of all rows, a few at a time."""
    num = len(next(iter(rows.values())))
    parts = (
        {name: array[i : i + AT_ONCE] for name, array in rows.items()}
        for i in range(0, num, AT_ONCE)
    )
    return jnp.concatenate([function(who, **part) for part in parts])


def prices(config: Config) -> Iterator[tuple[str, Price | str]]:
    """What each defence of the table does, in words, and its price on the test images.

    The numbers are those of the configuration; of a number that has no default and is not set it
    is `Kind.usual`. Where a defence cannot be made, the reason stands for its price.

    Raises:
      UserError: the configuration, the victim or the images are wrong.
    """
    if not config.dataset:
        raise UserError("config.dataset is empty; prices are measured on labelled test images")
    configs = [with_defence(config, kind) for kind in DEFENCES.values()]
    for defended in configs:
        validate(defended)
    undefended = copy.deepcopy(config)
    undefended.victim.defence = ""
    victim, task, _ = asked.load_undefended(undefended, hard_labels=False)
    test = datasets.load(config.dataset, "test", config.data_dir)
    known = ask(victim, test.images)
    for kind, defended in zip(DEFENCES.values(), configs, strict=True):
        about = f"{kind.name}: {kind.about(defended.victim)}"
        try:
            defence = kind.make(asked.owner_of(defended, task))
        except UserError as error:
            yield about, str(error)
        else:
            yield about, price_of(defence, test, *known)


def with_defence(config: Config, kind: Kind) -> Config:
    """A copy with a defence of this kind, answers that it changes, and no number missing."""
    config = copy.deepcopy(config)
    config.victim.defence = kind.name
    possible = kind.changes(config.victim)
    config.labels = config.labels if config.labels in possible else possible[0]
    for key, value in kind.usual.items():
        setattr(config.victim, key, getattr(config.victim, key) or value)
    return config
