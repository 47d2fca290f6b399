"""Transfer sets: what was asked and answered, as one .npz that other clones can learn from.

It holds `images`, uint8 [N, H, W, channels], and `answers`, probabilities [N, K] float32 or
labels [N] int32, in the order in which they were sent; and `test_images` and `test_answers`, what
the victim said of the images that the clones were tested on, which nobody should learn from.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from disguide_jax import paths
from disguide_jax.errors import UserError
from disguide_jax.files import atomic, npz
from disguide_jax.files.ledger import FIDELITY, TEST, TRAINING, Format, Ledger

NAMES = ("images", "answers", "test_images", "test_answers")


class TransferSet(NamedTuple):
    """Images, uint8, and a victim's answers."""

    images: np.ndarray  # [N, H, W, channels]
    answers: np.ndarray  # [N, K] or [N]
    test_images: np.ndarray  # [M, H, W, channels]
    test_answers: np.ndarray  # [M, K] or [M]


def num_images(path: str) -> int:
    """How many answered images a transfer set has; nothing else is read.

    Raises:
      UserError: there is none, or it is damaged.
    """
    found = npz.read_shapes(_file(path), *NAMES)
    _check(path, found)
    return found["images"][0]


def load(path: str) -> TransferSet:
    """Reads a transfer set.

    Raises:
      UserError: there is none, or it is damaged.
    """
    arrays = npz.read(_file(path), *NAMES)
    _check(path, {name: array.shape for name, array in arrays.items()})
    return TransferSet(*(arrays[name] for name in NAMES))


def _file(path: str) -> pathlib.Path:
    if not path:
        raise UserError(
            "config.offline.queries is empty; it must be a transfer set: "
            "python scripts/export_queries.py WORKDIR OUT.npz"
        )
    found = paths.expanded(path)
    if not found.is_file():
        raise UserError(f"config.offline.queries: {paths.absent(found)}")
    return found


def _check(path: str, shapes: dict[str, tuple[int, ...]]) -> None:
    absent = [name for name in NAMES if name not in shapes]
    if absent:
        raise UserError(f"{path}: it has no {' and no '.join(absent)}; it is no transfer set")
    num_images, num_answers = shapes["images"][0], shapes["answers"][0]
    if num_images != num_answers or not num_images:
        raise UserError(f"{path}: {num_images} images and {num_answers} answers")


def export(workdir: pathlib.Path, path: pathlib.Path) -> TransferSet:
    """Writes what the ledger of a workdir holds; returns it.

    Raises:
      UserError: there is no ledger, nothing was answered, or the file cannot be written.
    """
    with Ledger.opened(workdir / "ledger") as ledger:
        tested = TEST if ledger.received[TEST] else FIDELITY
        (images, answers), (test_images, test_answers) = (
            _joined(ledger, account, ledger.format) for account in (TRAINING, tested)
        )
    found = TransferSet(images, answers, test_images, test_answers)
    if not len(found.images):
        raise UserError(f"{workdir}: nothing has been answered yet")
    try:
        with atomic.replacing(path) as file:
            np.savez_compressed(file, **found._asdict())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return found


def _joined(ledger: Ledger, account: int, kept: Format) -> tuple[np.ndarray, np.ndarray]:
    batches = list(ledger.answered(account))
    if not batches:
        return np.zeros((0, *kept.image), np.uint8), np.zeros((0, *kept.answer), kept.dtype)
    _, images, answers = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(answers)
