"""Data sets: victims are trained on them and clones tested on them, never trained.

A data set NAME is `DATA_DIR/NAME.npz` where there is such a file. Otherwise:

| NAME                    | from                                                       |
|-------------------------|------------------------------------------------------------|
| digits                  | scikit-learn, always at hand: 8x8 scans resized to 32x32   |
| colour_digits           | the same, each in light ink of one colour on dark paper    |
| cifar10, cifar100, svhn | TensorFlow Datasets (TFDS), prepared in DATA_DIR           |
| mnist, fashion_mnist    | their own files, *-ubyte or *-ubyte.gz, in DATA_DIR or a   |
|                         | torchvision folder there; or as above. 28x28 images get a  |
|                         | black margin of 2 pixels                                   |
| noise10, noise100       | random pixels and labels, to try a program without data    |

An .npz holds `train_images` and `test_images`, uint8 [N, S, S, channels] or without the axis of
channels; `train_labels` and `test_labels`, integers [N]; and `classes`, the names of the K classes.
A split that nobody asks for may be absent. Under a name of one's own S is any multiple of 4 from 8
to 224; in the table above it is 32. 28x28 images always get the margin.
"""

import functools
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.files import idx, npz, tfds
from disguide_jax.files.tfds import Arrays, Split
from disguide_jax.options import SIZES, SIZES_IN_WORDS

IMAGE_SIZE = 32  # of all data sets in the table, and of what else says no size
MARGIN = 2  # black pixels around images of 28x28
NAMES_OF_ARRAYS = "train_images, train_labels, test_images, test_labels and classes"


class Info(NamedTuple):
    """What is known of a data set without loading its images."""

    num_classes: int
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1], per channel, for networks trained on it
    std: tuple[float, ...]
    size: int = IMAGE_SIZE  # height and width of its images


class _Known(NamedTuple):
    info: Info
    num_train: int
    num_test: int


# METHODS: CIFAR-10's constants, for CIFAR-100 too, as the authors' victims were trained.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_MNIST = ((0.1307,), (0.3081,))
_FASHION_MNIST = ((0.2860,), (0.3530,))
_DIGITS = ((0.5,), (0.5,))
_COLOUR_DIGITS = ((0.38,) * 3, (0.22,) * 3)  # of its training images
_KNOWN = {
    "digits": _Known(Info(10, 1, *_DIGITS), 1_297, 500),
    "colour_digits": _Known(Info(10, 3, *_COLOUR_DIGITS), 1_297, 500),
    "cifar10": _Known(Info(10, 3, *_CIFAR), 50_000, 10_000),
    "cifar100": _Known(Info(100, 3, *_CIFAR), 50_000, 10_000),
    "svhn": _Known(Info(10, 3, *_SVHN), 73_257, 26_032),
    "mnist": _Known(Info(10, 1, *_MNIST), 60_000, 10_000),
    "fashion_mnist": _Known(Info(10, 1, *_FASHION_MNIST), 60_000, 10_000),
    "noise10": _Known(Info(10, 3, *_CIFAR), 100, 100),
    "noise100": _Known(Info(100, 3, *_CIFAR), 100, 100),
}


def describe(name: str, data_dir: str = "") -> Info:
    """Classes, channels, usual normalisation and size of images of a data set.

    Args:
      name: see the table above; of an unknown name, DATA_DIR/NAME.npz tells all but the
        normalisation, which is that of images in [-1, 1].
      data_dir: where NAME.npz lies; "" is the current directory.

    Raises:
      UserError: there is no such data set, or none with such images.
    """
    if name in _KNOWN:
        return _KNOWN[name].info
    path = npz.path_of(name, data_dir)
    if not os.path.exists(path):
        raise UserError(
            f"unknown data set {name!r}: it is none of {', '.join(_KNOWN)}, and there is no file "
            f"{path} with {NAMES_OF_ARRAYS}"
        )
    classes = npz.read(path, "classes")
    shapes = npz.read_shapes(path, "test_images", "train_images")
    if not classes or classes["classes"].ndim != 1 or not shapes:
        raise UserError(f"{path}: it must hold {NAMES_OF_ARRAYS} (names of the classes, [K])")
    shape = next(iter(shapes.values()))
    channels = shape[-1] if len(shape) == 4 else 1
    if channels not in (1, 3):
        raise UserError(f"{path}: its images have {channels} channels; they must have 1 or 3")
    if len(shape) not in (3, 4) or shape[1] != shape[2] or shape[1] not in SIZES:
        raise UserError(
            f"{path}: the images are {list(shape)}; they must be [N, S, S, channels] or [N, S, S], "
            f"S {SIZES_IN_WORDS}"
        )
    size = shape[1] + (2 * MARGIN if shape[1] == 28 else 0)
    return Info(len(classes["classes"]), channels, (0.5,) * channels, (0.5,) * channels, size)


def num_train_images(name: str) -> int:
    """How many training images a data set in the table above has."""
    return _KNOWN[name].num_train


def load(name: str, split: str, data_dir: str = "") -> Split:
    """The images and labels of a split: all of them, in the order of their source, or none.

    Args:
      name: see the table above.
      split: "train" or "test".
      data_dir: where it lies, in any of the forms above. "" is the current directory, then
        for Fashion-MNIST Debian's own place, then TFDS's.

    Raises:
      UserError: the data set is absent, incomplete or damaged; says what would be right.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    info = describe(name, data_dir)
    num_images = _num_images(name, split)
    check = functools.partial(_checked, info=info, num_images=num_images)
    path = npz.path_of(name, data_dir)
    if os.path.exists(path):
        return check(_load_npz(path, split), f"{path}, {split} split")
    if name == "digits":
        return check(_load_digits(split), name)
    if name == "colour_digits":
        images, labels = _load_digits(split)
        return check((_colour(images, split), labels), name)
    if name.startswith("noise") and num_images is not None:
        rng = np.random.default_rng(["train", "test"].index(split))
        shape = (num_images, IMAGE_SIZE, IMAGE_SIZE, info.channels)
        images = rng.integers(0, 256, shape, np.uint8)
        return check((images, rng.integers(0, info.num_classes, num_images)), name)
    folder = idx.find(name, data_dir)
    if folder:
        return check(idx.load(folder, split), f"{folder}, {split} split")
    places = [f"{path} with {NAMES_OF_ARRAYS}", *idx.places(name, data_dir)]
    return tfds.load(name, split, data_dir, check, places)


def _num_images(name: str, split: str) -> int | None:
    """How many images a split must have; None: as many as there are."""
    if name not in _KNOWN:
        return None
    return _KNOWN[name].num_train if split == "train" else _KNOWN[name].num_test


def fingerprint(split: Split) -> str:
    """A hash of all images and labels, whatever file they come from."""
    digest = hashlib.sha256()
    for array in split:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _checked(arrays: Arrays, where: str, *, info: Info, num_images: int | None) -> Split:
    """Refuses what is not a whole split of this data set, and adds the margin to 28x28.

    Raises:
      UserError: says where something is wrong and what would be right.
    """

    def check(right: bool, what: str) -> None:
        if not right:
            raise UserError(f"{where}: {what}")

    images, labels = arrays
    check(images.dtype == np.uint8, f"the images are {images.dtype}; they must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:3] == (28, 28):
        images = np.pad(images, [(0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)])
    shape = (info.size, info.size, info.channels)
    check(
        images.shape[1:] == shape,
        f"the images are {list(arrays[0].shape)}; they must be [N, {', '.join(map(str, shape))}]"
        + (", or 28x28" if info.size == IMAGE_SIZE else ""),
    )
    check(
        labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
        f"the labels are {labels.dtype} {list(labels.shape)}; they must be integers [N]",
    )
    wanted = num_images or max(len(images), 1)
    check(
        len(images) == len(labels) == wanted,
        f"there are {len(images):,} images and {len(labels):,} labels, and there must be "
        f"{wanted:,} of each: it is incomplete",
    )
    check(
        labels.min() >= 0 and labels.max() < info.num_classes,
        f"the labels go from {labels.min()} to {labels.max()}; "
        f"they must lie between 0 and {info.num_classes - 1}",
    )
    return Split(images, labels.astype(np.int32))


def _load_digits(split: str) -> Arrays:
    """1,297 training and 500 test images, divided by a fixed permutation."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8, levels 0 to 16
    bilinear = Image.Resampling.BILINEAR
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = np.stack([np.asarray(Image.fromarray(p).resize(size, bilinear)) for p in pixels])
    order = np.random.default_rng(0).permutation(len(images))
    num_train = _KNOWN["digits"].num_train
    part = order[:num_train] if split == "train" else order[num_train:]
    return images[part], digits.target[part]


def _load_npz(path: pathlib.Path, split: str) -> Arrays:
    names = f"{split}_images", f"{split}_labels"
    arrays = npz.read(path, *names)
    absent = [name for name in names if name not in arrays]
    if absent:
        raise UserError(
            f"{path}: it has no {' and no '.join(absent)}, so its {split} split cannot be used"
        )
    return arrays[names[0]], arrays[names[1]]


def _colour(images: np.ndarray, split: str) -> np.ndarray:
    """[N, 32, 32, 3]: light ink on dark paper, both in colours that are always the same."""
    rng = np.random.default_rng(["train", "test"].index(split))
    paper = rng.integers(0, 96, (len(images), 1, 1, 3))
    ink = rng.integers(160, 256, paper.shape)
    return np.round(paper + images[..., None] / 255 * (ink - paper)).astype(np.uint8)
