"""Data sets that need no files: digits of scikit-learn, plain or in colour, and noise."""

import functools
import pathlib

import numpy as np
from PIL import Image

from disguide_jax.files.places import IMAGE_SIZE, SPLITS, Arrays

NAMES = ("digits", "colour_digits", "noise10", "noise100")
DIGITS = {"train": 1_297, "test": 500}  # how many there are
NOISE = {"train": 100, "test": 100}


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The name itself in place of a place, or None."""
    return pathlib.Path(name) if name in NAMES else None


def places(name: str, data_dir: str) -> list[str]:
    """Where such a data set could be, in words: nowhere."""
    return []


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images [N, 32, 32(, 3)] uint8 and labels [N] of a split, the same every time."""
    if name.startswith("noise"):
        return _noise(int(name.removeprefix("noise")), split)
    images, labels = _digits(split)
    return (_colour(images, split), labels) if name == "colour_digits" else (images, labels)


def _noise(num_classes: int, split: str) -> Arrays:
    rng = np.random.default_rng(SPLITS.index(split))
    images = rng.integers(0, 256, (NOISE[split], IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return images, rng.integers(0, num_classes, NOISE[split])


def _digits(split: str) -> Arrays:
    """All scans, divided by a fixed permutation."""
    images, labels = _scans()
    order = np.random.default_rng(0).permutation(len(images))
    part = order[: DIGITS["train"]] if split == "train" else order[DIGITS["train"] :]
    return images[part], labels[part]


@functools.cache  # resizing them takes a fifth of a second
def _scans() -> Arrays:
    """All scans [1797, 32, 32] uint8, and what they show."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8, levels 0 to 16
    bilinear = Image.Resampling.BILINEAR
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = np.stack([np.asarray(Image.fromarray(p).resize(size, bilinear)) for p in pixels])
    return images, digits.target


def _colour(images: np.ndarray, split: str) -> np.ndarray:
    """[N, 32, 32, 3]: light ink on dark paper, both in colours that are always the same."""
    rng = np.random.default_rng(SPLITS.index(split))
    paper = rng.integers(0, 96, (len(images), 1, 1, 3))
    ink = rng.integers(160, 256, paper.shape)
    return np.round(paper + images[..., None] / 255 * (ink - paper)).astype(np.uint8)
