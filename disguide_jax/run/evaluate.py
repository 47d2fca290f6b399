"""How good the clones are: accuracy of single clones and votes, fidelity to the victim.

Test images never touch training, and asking the victim about them is not a query.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import backend, pixels
from disguide_jax.core.answers import hard_vote, soft_vote, to_labels
from disguide_jax.core.types import Array, Net, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.options import VictimConfig
from disguide_jax.victims.network import Victim, load_network, make_victim, normalisation

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
    victim: Victim, images: np.ndarray, labels: np.ndarray, *, batch_size: int | None = None
) -> TestSet:
    """Asks the victim about the test images once.

    Args:
      victim: whose labels the fidelity is measured against.
      images: [M, H, W, channels] uint8.
      labels: [M] integers.
      batch_size: N, if not what suits the backend; the last batch is padded.
    """
    batch_size = min(batch_size or backend.tested_at_once(images.shape[1]), len(images))
    padding = -len(images) % batch_size
    images = np.pad(images, [(0, padding)] + [(0, 0)] * 3)
    labels = np.pad(labels, (0, padding), constant_values=PADDING).astype(np.int32)
    batches = jnp.asarray(images.reshape(-1, batch_size, *images.shape[1:]))

    @jax.jit
    def ask(victim: Victim, images: Array) -> Array:
        return to_labels(victim(victim.to_input_space(pixels.decode(images))))

    victim_labels = jnp.stack([ask(victim, batch) for batch in batches])
    return TestSet(batches, jnp.asarray(labels.reshape(-1, batch_size)), victim_labels)


def victim_accuracy(test_set: TestSet) -> float:
    """The victim's accuracy on the test images."""
    right = (test_set.victim_labels == test_set.labels) & (test_set.labels != PADDING)
    return int(right.sum()) / num_images(test_set)


def num_images(test_set: TestSet) -> int:
    """How many test images there are, without padding."""
    return int((test_set.labels != PADDING).sum())


def make_evaluate(clones: Net, victim: Victim) -> Callable[[Variables, TestSet], Scores]:
    """A function that scores stacked clones on a test set, one compiled batch at a time."""

    @jax.jit
    def count(variables: Variables, victim: Victim, batch: TestSet) -> dict[str, Array]:
        images = victim.to_input_space(pixels.decode(batch.images))
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


def scores_line(scores: Scores) -> dict[str, Any]:
    """Scores under their names in the log."""
    return {
        "eval/soft_vote_accuracy": scores.soft_vote_accuracy,
        "eval/hard_vote_accuracy": scores.hard_vote_accuracy,
        "eval/clone_accuracy": scores.clone_accuracy.tolist(),
        "eval/fidelity": scores.fidelity,
    }


def report(config: VictimConfig, dataset: str, data_dir: str, predictions: str) -> str:
    """What a victim is and how often it is right, in two lines.

    Args:
      config: where its weights are, and what they were trained with.
      dataset: whose test images it is asked about.
      data_dir: where they lie.
      predictions: a file for the classes that it names, [N] int32; "" for none.

    Raises:
      UserError: no such weights or images, or the file cannot be written.
    """
    info = datasets.describe(dataset, data_dir)
    net, variables, found = load_network(
        config, num_classes=info.num_classes, size=info.size, channels=info.channels
    )
    mean, std = normalisation(config, info)
    test = datasets.load(dataset, "test", data_dir)
    oracle = make_victim(net, variables, mean=mean, std=std, hard_labels=True)
    test_set = make_test_set(oracle, test.images, test.labels)
    answers = np.asarray(test_set.victim_labels).reshape(-1)[: len(test.labels)]
    if predictions:
        try:
            with open(predictions, "wb") as file:
                np.save(file, answers)
        except OSError as error:
            raise UserError(f"{predictions}: cannot be written: {error.strerror}") from error
    right = int((answers == test.labels).sum())
    return (
        f"{config.weights}: {found.model} of width {found.width}\n"
        f"accuracy {right / len(answers):.4f}: {right:,} of {len(answers):,} {dataset} images"
    )
