"""Data sets: victims are trained on them and clones tested on them, never trained."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from disguide_jax.errors import UserError


class Info(NamedTuple):
    """What is known of a data set without loading it."""

    num_classes: int
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1], per channel
    std: tuple[float, ...]


class Split(NamedTuple):
    """Images [N, 32, 32, channels] uint8 and labels [N] int32."""

    images: np.ndarray
    labels: np.ndarray


def describe(name: str, data_dir: str = "") -> Info:
    """Classes, channels and the usual normalisation of a data set."""
    if name in ("cifar10", "cifar100"):
        return Info(
            10 if name == "cifar10" else 100,
            3,
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
        )
    if name == "digits":
        return Info(10, 1, (0.5,), (0.5,))
    raise UserError(f"unknown data set {name!r}")


def load(name: str, split: str, data_dir: str = "") -> Split:
    """A split of a data set."""
    from sklearn.datasets import load_digits

    if name != "digits":
        raise UserError(f"{name}: no file {data_dir}/{name}.npz")
    digits = load_digits()
    small = (digits.images * 255 / 16).round().astype(np.uint8)
    resize = lambda i: np.asarray(
        Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR)
    )
    images = np.stack([resize(i) for i in small])[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    order = order[:1297] if split == "train" else order[1297:]
    return Split(images[order], digits.target[order].astype(np.int32))
