"""How good the clones are: accuracy of single clones and votes, fidelity to the victim.

Test images never touch training, and asking the victim about them is no part of the budget.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import backend, machines, mesh, pixels
from disguide_jax.core.answers import hard_vote, soft_vote, to_labels
from disguide_jax.core.types import Array, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.victims.defences import Traced

PADDING = -1  # label of the rows that fill up the last batch, and of what nobody knows


class TestSet(NamedTuple):
    """Test images on the device, in equal batches; B batches."""

    images: Array  # [B, N, H, W, channels] uint8
    labels: Array  # [B, N] int32, PADDING where there is no image or no known label
    victim_labels: Array  # [B, N] int32, of the victim itself; PADDING where there is no image
    defended_labels: Array | None = None  # likewise, of a victim behind a defence


class Scores(NamedTuple):
    """Fractions in [0, 1]; accuracies are nan where nobody knows the true labels."""

    clone_accuracy: np.ndarray  # [C]
    soft_vote_accuracy: float  # of the class with the largest sum of softmaxes (Section 3)
    hard_vote_accuracy: float  # of the class that most clones name
    fidelity: float  # how often the soft vote agrees with the victim

    @property
    def labelled(self) -> bool:
        """Whether the true labels are known."""
        return not math.isnan(self.soft_vote_accuracy)


def make_test_set(
    images: np.ndarray,
    labels: np.ndarray | None,
    victim_labels: np.ndarray,
    defended_labels: np.ndarray | None = None,
    *,
    batch_size: int | None = None,
) -> TestSet:
    """Test images in batches on the device.

    Args:
      images: [M, H, W, channels] uint8.
      labels: [M] integers; None where nobody knows them.
      victim_labels: [M] integers, what the victim said, which fidelity is measured against.
      defended_labels: [M] integers, what it said behind its defence, where it has one.
      batch_size: N, if not what suits the backend, made a multiple of the devices in use; the
        last batch is padded.
    """
    batch_size = min(batch_size or backend.tested_at_once(images.shape[1]), len(images))
    batch_size += -batch_size % mesh.num_parts()
    padding = -len(images) % batch_size
    images = np.pad(images, [(0, padding)] + [(0, 0)] * 3)
    unknown = np.full(len(victim_labels), PADDING)

    def batches(values: np.ndarray) -> Array:
        padded = np.pad(values, (0, padding), constant_values=PADDING).astype(np.int32)
        return jnp.asarray(padded.reshape(-1, batch_size))

    test_set = TestSet(
        jnp.asarray(images.reshape(-1, batch_size, *images.shape[1:])),
        batches(unknown if labels is None else labels),
        batches(victim_labels),
        None if defended_labels is None else batches(defended_labels),
    )
    return mesh.on_all(test_set)


def labels_of(victim: Traced, images: np.ndarray) -> np.ndarray:
    """What a victim says of images [M, H, W, channels], uint8 or in [-1, 1]: [M] int32."""
    batch_size = min(backend.tested_at_once(images.shape[1]), len(images))
    padded = np.pad(images, [(0, -len(images) % batch_size)] + [(0, 0)] * 3)
    batches = padded.reshape(-1, batch_size, *images.shape[1:])
    return np.concatenate([machines.done(_ask(victim, batch)) for batch in batches])[: len(images)]


@jax.jit
def _ask(victim: Traced, images: Array) -> Array:
    return mesh.whole(to_labels(victim(victim.to_input_space(pixels.decode(images)))))


def victim_accuracy(test_set: TestSet) -> float | None:
    """The accuracy on the test images of the victim itself; None where nobody knows the labels."""
    return _accuracy(test_set.victim_labels, test_set.labels)


def defended_accuracy(test_set: TestSet) -> float | None:
    """Behind its defence; None where it has none, or no true labels are known."""
    if test_set.defended_labels is None:
        return None
    return _accuracy(test_set.defended_labels, test_set.labels)


def _accuracy(named: Array, labels: Array) -> float | None:
    named, labels = jax.device_get((named, labels))
    known = labels != PADDING
    if not known.any():
        return None
    return int(((named == labels) & known).sum()) / int(known.sum())


def num_images(test_set: TestSet) -> int:
    """How many test images there are, without padding."""
    return int((jax.device_get(test_set.victim_labels) != PADDING).sum())


def make_evaluate(
    clones: Net, victim: Traced | None = None
) -> Callable[[Variables, TestSet], Scores]:
    """A function that scores stacked clones on a test set, one compiled batch at a time.

    Args:
      clones: stacked networks.
      victim: whose input space they work in, if not images in [-1, 1].
    """

    @jax.jit
    def count(variables: Variables, victim: Traced | None, batch: TestSet) -> dict[str, Array]:
        images = pixels.decode(batch.images)
        images = images if victim is None else victim.to_input_space(images)
        logits, _ = clones.apply(variables, images, train=False)

        def agreeing(answers: Array, truth: Array) -> Array:
            return ((answers == truth) & (truth != PADDING)).sum()

        soft = soft_vote(logits)
        counts = {
            "clones": jnp.stack([agreeing(one.argmax(-1), batch.labels) for one in logits]),
            "soft_vote": agreeing(soft, batch.labels),
            "hard_vote": agreeing(hard_vote(logits), batch.labels),
            "fidelity": agreeing(soft, batch.victim_labels),
            "labelled": (batch.labels != PADDING).sum(),
            "images": (batch.victim_labels != PADDING).sum(),
        }
        return mesh.whole(counts)

    def evaluate(variables: Variables, test_set: TestSet) -> Scores:
        batches = (jax.tree.map(lambda x, i=i: x[i], test_set) for i in range(len(test_set[0])))
        counts = [machines.done(count(variables, victim, batch)) for batch in batches]
        total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(counts))
        labelled = total["labelled"] or math.nan
        return Scores(
            clone_accuracy=total["clones"] / labelled,
            soft_vote_accuracy=float(total["soft_vote"] / labelled),
            hard_vote_accuracy=float(total["hard_vote"] / labelled),
            fidelity=float(total["fidelity"] / total["images"]),
        )

    return evaluate


def scores_line(scores: Scores) -> dict[str, Any]:
    """Scores under their names in the log, but for those that are not known."""
    line: dict[str, Any] = {"eval/fidelity": scores.fidelity}
    if scores.labelled:
        line |= {
            "eval/soft_vote_accuracy": scores.soft_vote_accuracy,
            "eval/hard_vote_accuracy": scores.hard_vote_accuracy,
            "eval/clone_accuracy": scores.clone_accuracy.tolist(),
        }
    return line


def save_predictions(path: str, labels: np.ndarray) -> None:
    """Writes the classes that were named, [N] int32, as an .npy file of exactly this name.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with open(path, "wb") as file:
            np.save(file, labels.astype(np.int32))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
