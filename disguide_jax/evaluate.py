"""How good the clones are: accuracy of single clones and votes, fidelity to the victim.

Test images never touch training, and asking the victim about them is not a query.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.state import Array, Net, Variables
from disguide_jax.victim import Victim, to_labels

PADDING = -1  # label of the rows that fill up the last batch


class TestSet(NamedTuple):
    """Test images on the device, in equal batches; B batches."""

    images: Array  # [B, N, H, W, channels] uint8
    labels: Array  # [B, N] int32, PADDING where there is no image
    victim_labels: Array  # [B, N] int32


class Scores(NamedTuple):
    """Fractions in [0, 1]."""

    clone_accuracy: np.ndarray  # [C]
    soft_vote_accuracy: float  # of the class with the largest sum of softmaxes (Section 3)
    hard_vote_accuracy: float  # of the class that most clones name
    fidelity: float  # how often the soft vote agrees with the victim


def make_test_set(
    victim: Victim, images: np.ndarray, labels: np.ndarray, *, batch_size: int = 500
) -> TestSet:
    """Asks the victim about the test images once.

    Args:
      victim: whose labels the fidelity is measured against.
      images: [M, H, W, channels] uint8.
      labels: [M] integers.
      batch_size: N; the last batch is padded.
    """
    batch_size = min(batch_size, len(images))
    padding = -len(images) % batch_size
    images = np.pad(images, [(0, padding)] + [(0, 0)] * 3)
    labels = np.pad(labels, (0, padding), constant_values=PADDING).astype(np.int32)
    images = jnp.asarray(images.reshape(-1, batch_size, *images.shape[1:]))

    @jax.jit
    def ask(victim: Victim, images: Array) -> Array:
        return to_labels(victim(victim.to_input_space(to_float(images))))

    victim_labels = jnp.stack([ask(victim, batch) for batch in images])
    return TestSet(images, jnp.asarray(labels.reshape(-1, batch_size)), victim_labels)


def victim_accuracy(test_set: TestSet) -> float:
    """The victim's accuracy on the test images."""
    right = (test_set.victim_labels == test_set.labels) & (test_set.labels != PADDING)
    return int(right.sum()) / num_images(test_set)


def num_images(test_set: TestSet) -> int:
    """How many test images there are, without padding."""
    return int((test_set.labels != PADDING).sum())


def to_float(images: Array) -> Array:
    """uint8 images as floats in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def soft_vote(logits: Array) -> Array:
    """The class with the largest sum of softmaxes, [C, N, K] -> [N] (Section 3)."""
    return jnp.argmax(jax.nn.softmax(logits).sum(axis=0), axis=-1)


def hard_vote(logits: Array) -> Array:
    """The class that most clones name, [C, N, K] -> [N]; ties go to the soft vote."""
    probs = jax.nn.softmax(logits)
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]).sum(axis=0)
    return jnp.argmax(votes + probs.mean(axis=0) / 2, axis=-1)


def make_evaluate(clones: Net, victim: Victim) -> Callable[[Variables, TestSet], Scores]:
    """A function that scores stacked clones on a test set, one compiled batch at a time."""

    @jax.jit
    def count(variables: Variables, victim: Victim, batch: TestSet) -> dict[str, Array]:
        images = victim.to_input_space(to_float(batch.images))
        logits, _ = clones.apply(variables, images, train=False)
        real = batch.labels != PADDING

        def agreeing(answers: Array, truth: Array) -> Array:
            return ((answers == truth) & real).sum()

        soft = soft_vote(logits)
        return {
            "clones": jnp.stack([agreeing(one.argmax(-1), batch.labels) for one in logits]),
            "soft_vote": agreeing(soft, batch.labels),
            "hard_vote": agreeing(hard_vote(logits), batch.labels),
            "fidelity": agreeing(soft, batch.victim_labels),
            "images": real.sum(),
        }

    def evaluate(variables: Variables, test_set: TestSet) -> Scores:
        batches = (jax.tree.map(lambda x, i=i: x[i], test_set) for i in range(len(test_set[0])))
        counts = [count(variables, victim, batch) for batch in batches]
        total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(counts))
        images = total.pop("images")
        share = {name: value / images for name, value in total.items()}
        return Scores(
            clone_accuracy=share["clones"],
            soft_vote_accuracy=float(share["soft_vote"]),
            hard_vote_accuracy=float(share["hard_vote"]),
            fidelity=float(share["fidelity"]),
        )

    return evaluate
