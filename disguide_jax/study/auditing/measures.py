"""What an audit measures of finished runs, from what they have left in their workdirs."""

import base64
import copy as copying
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax import models
from disguide_jax.audit_config import TransferConfig
from disguide_jax.config import Config
from disguide_jax.core import adversarial, pixels
from disguide_jax.core.answers import to_labels
from disguide_jax.core.types import Array, Task
from disguide_jax.files import datasets
from disguide_jax.files import workdir as workdir_files
from disguide_jax.files.ledger import FIDELITY, TEST, UNDEFENDED, Ledger
from disguide_jax.run import asked, copies, evaluate, watching
from disguide_jax.run.copies import Copy
from disguide_jax.run.price import AT_ONCE
from disguide_jax.victims.defences import Traced
from disguide_jax.victims.host import Endpoint

MILESTONES = (0.8, 0.9, 0.95)  # of the victim's accuracy
ROUNDING = 1e-9  # 0.8 of 0.9 is 0.7200000000000001


class Tested(NamedTuple):
    """Test images, and what the victim says of them without a defence."""

    images: np.ndarray  # [M, H, W, channels] uint8
    labels: np.ndarray | None  # [M], None where nobody knows them
    victim_labels: np.ndarray  # [M]

    @property
    def where_right(self) -> np.ndarray | None:
        """Whether the victim is right, [M]; None where nobody knows."""
        return None if self.labels is None else self.victim_labels == self.labels


def tested(config: Config, workdir: pathlib.Path, victim: Traced | Endpoint) -> Tested:
    """The test images of a finished run.

    Args:
      config: of the run.
      workdir: whose ledger knows what an endpoint has said of them.
      victim: without a defence; an endpoint is not asked.
    """
    labelled = None
    if config.dataset:
        labelled = datasets.load(config.dataset, "test", config.data_dir)
    if isinstance(victim, Traced) and labelled:
        return Tested(*labelled, evaluate.labels_of(victim, labelled.images))
    with Ledger.opened(workdir / "ledger") as ledger:
        usual = TEST if labelled else FIDELITY
        account = UNDEFENDED if ledger.received[UNDEFENDED] else usual
        images, named = zip(*watching.recorded(ledger, account), strict=True)
    labels = labelled.labels if labelled else None
    return Tested(np.concatenate(images), labels, np.concatenate(named))


@jax.jit
def _vote(copy: Copy, images: Array) -> Array:
    return copy(images).argmax(axis=-1)


def votes(copy: Copy, images: np.ndarray) -> np.ndarray:
    """The classes [M] that clones name for images [M, H, W, channels] uint8."""
    parts = (images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE))
    return np.concatenate([_vote(copy, part) for part in parts])


def agreement(named: np.ndarray, known: Tested) -> float | None:
    """Of the images that the victim gets right, the share that the clones name alike.

    Args:
      named: the clones' classes [M].
      known: of the same images.

    Returns:
      None where nobody knows what is right, or the victim never is.
    """
    right = known.where_right
    if right is None or not right.any():
        return None
    return float((named == known.victim_labels)[right].mean())


def transfer(
    copy: Copy, victim: Traced | Endpoint, known: Tested, how: TransferConfig
) -> dict[str, Any] | None:
    """How often adversarial examples that are made on clones change the victim's answer.

    They are made of the first images that the victim gets right, of its class and the clones'
    soft vote alone. An endpoint gets them with 8 bits, asked beside the budget.

    Returns:
      The share of success for each attack; None where there is no such image.
    """
    right = known.where_right
    if right is None or not right.any():
        return None
    chosen = np.flatnonzero(right)[: how.images]
    images = pixels.decode(jnp.asarray(known.images[chosen]))
    labels = jnp.asarray(known.victim_labels[chosen])
    gradient_fn = functools.partial(_gradient, copy, labels)
    fgsm = adversarial.fgsm(gradient_fn, images, epsilon=how.epsilon)
    key = jax.random.key(0)
    pgd = adversarial.pgd(gradient_fn, images, key, epsilon=how.epsilon, steps=how.steps)

    def of(made: Array) -> dict[str, Any]:
        changed = _named(victim, made) != known.victim_labels[chosen]
        success = float(changed.mean())
        return {"epsilon": how.epsilon, "success": success, "images": len(chosen)}

    return {"fgsm": of(fgsm), "pgd": of(pgd)}


@jax.jit  # one step alone: on a CPU a convolution's gradient is slow within a loop
def _gradient(copy: Copy, labels: Array, images: Array) -> Array:
    """The gradient [N, H, W, channels] of each image's cross-entropy with its label [N]."""

    def loss(images: Array) -> Array:
        named = jnp.take_along_axis(copy(images), labels[:, None], axis=1)
        return -jnp.log(named).sum()

    return jax.grad(loss)(images)


def _named(victim: Traced | Endpoint, images: Array) -> np.ndarray:
    """The victim's classes of images [N, H, W, channels] in [-1, 1]."""
    if isinstance(victim, Traced):
        return evaluate.labels_of(victim, np.asarray(images))
    parts = [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
    sent = (np.asarray(pixels.encode(part, jnp.dtype(jnp.uint8))) for part in parts)
    answers = [jnp.asarray(victim.ask(part, lambda num: None)) for part in sent]
    return np.concatenate([to_labels(part) for part in answers])


def outcome(
    config: Config, workdir: pathlib.Path, victim: Traced | Endpoint, how: TransferConfig
) -> dict[str, Any]:
    """What the clones of a finished run are to the victim.

    Args:
      config: of the run.
      workdir: of the run.
      victim: without a defence.
      how: adversarial examples are made.
    """
    model = config.clones.model if models.is_brought(config.clones.model) else ""
    copy, known = copies.load_clones(workdir, model=model), tested(config, workdir, victim)
    return {
        "agreement_where_right": agreement(votes(copy, known.images), known),
        "transfer": transfer(copy, victim, known, how) if how.images else None,
    }


def run_of(workdir: pathlib.Path, summary: dict[str, Any], bought: int | None) -> dict[str, Any]:
    """How well a run did that has ended, and for how many queries.

    Args:
      workdir: of the run.
      summary: its summary.json.
      bought: queries of a run whose images were labelled before it began; None of a method.
    """
    accuracy, fidelity = summary["soft_vote_accuracy"], summary["fidelity"]
    if bought is None:
        name = "eval/fidelity" if accuracy is None else "eval/soft_vote_accuracy"
        lines = [line for line in workdir_files.read_log(workdir) if name in line]
        curve = [[line["queries"], line[name]] for line in lines]
    else:
        curve = [[bought, fidelity if accuracy is None else accuracy]]
    return {
        "queries": summary["queries"] if bought is None else bought,
        "accuracy": accuracy,
        "fidelity": fidelity,
        "queries_to": queries_to(curve, summary["victim_accuracy"]),
        "curve": curve,
    }


def queries_to(curve: list[list[float]], victim_accuracy: float | None) -> dict[str, Any]:
    """The first evaluation at which shares of the victim's accuracy were reached, in queries."""

    def first(share: float) -> float | None:
        if victim_accuracy is None:
            return None
        goal = share * victim_accuracy - ROUNDING
        return next((queries for queries, accuracy in curve if accuracy >= goal), None)

    return {f"{share:g}": first(share) for share in MILESTONES}


def samples(pictures: Sequence[pathlib.Path]) -> list[str]:
    """PNG files as base64."""
    return [base64.b64encode(path.read_bytes()).decode() for path in pictures]


def undefended(config: Config) -> tuple[Traced | Endpoint, Task, str]:
    """The victim of a run without a defence, see `asked.load`."""
    return asked.load_undefended(copying.deepcopy(config), hard_labels=config.labels == "hard")
