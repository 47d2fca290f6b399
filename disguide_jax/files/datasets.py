"""Data sets: victims are trained on them and clones tested on them, never trained.

A data set lies in DATA_DIR in the first of these forms in which it is there:

| form                     | of             | module                                             |
|--------------------------|----------------|----------------------------------------------------|
| NAME.npz, or DATA_DIR is | all names      | npz.py                                             |
| such a file itself       |                |                                                    |
| none: always at hand     | digits,        | made.py: scikit-learn's 8x8 scans resized to 32x32 |
|                          | colour_digits, | the same, each in light ink of one colour on dark  |
|                          | noise10 (100)  | random pixels and labels, to try a program         |
| CIFAR's pickles, or the  | cifar10,       | cifar.py                                           |
| .tar.gz with them        | cifar100       |                                                    |
| *-ubyte or *-ubyte.gz    | mnist,         | idx.py: 28x28 images get a black margin of 2       |
|                          | fashion_mnist  | pixels                                             |
| *_32x32.mat              | svhn           | svhn.py                                            |
| prepared by TFDS         | all of these   | tfds.py                                            |
| NAME/test/CLASS/*.png or | all names      | folders.py                                         |
| test/CLASS/*.png or JPEG |                |                                                    |

An .npz holds `train_images` and `test_images`, uint8 [N, S, S, channels] or without the axis of
channels; `train_labels` and `test_labels`, integers [N]; and `classes`, the names of the K classes.
A split that nobody asks for may be absent. Under a name of one's own S is any multiple of 4 from 8
to 224; under a name in the table it is 32. 28x28 images always get the margin. The fastest form to
read is an .npz, which `scripts/prepare_data.py` makes of any other.
"""

import contextlib
import hashlib
import pathlib
import shlex
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import atomic, cifar, folders, idx, made, npz, svhn, tfds
from disguide_jax.files.places import IMAGE_SIZE, SPLITS, Arrays, Facts, is_there, root
from disguide_jax.options import SIZES, SIZES_IN_WORDS

MARGIN = 2  # black pixels around images of 28x28


class Split(NamedTuple):
    """Images [N, S, S, channels] uint8 and labels [N] int32."""

    images: np.ndarray
    labels: np.ndarray


class Info(NamedTuple):
    """What is known of a data set without loading its images."""

    num_classes: int
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1], per channel, for networks trained on it
    std: tuple[float, ...]
    size: int = IMAGE_SIZE  # height and width of its images


class _Form(Protocol):
    """A module that reads one form; `places` tells what its functions are."""

    def find(self, name: str, data_dir: str) -> pathlib.Path | None: ...
    def places(self, name: str, data_dir: str) -> list[str]: ...
    def load(self, place: pathlib.Path, name: str, split: str) -> Arrays: ...


class _Telling(_Form, Protocol):
    """One whose files tell the classes."""

    def describe(self, place: pathlib.Path) -> Facts: ...


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
    "digits": _Known(Info(10, 1, *_DIGITS), *made.DIGITS.values()),
    "colour_digits": _Known(Info(10, 3, *_COLOUR_DIGITS), *made.DIGITS.values()),
    "cifar10": _Known(Info(10, 3, *_CIFAR), 50_000, 10_000),
    "cifar100": _Known(Info(100, 3, *_CIFAR), 50_000, 10_000),
    "svhn": _Known(Info(10, 3, *_SVHN), 73_257, 26_032),
    "mnist": _Known(Info(10, 1, *_MNIST), 60_000, 10_000),
    "fashion_mnist": _Known(Info(10, 1, *_FASHION_MNIST), 60_000, 10_000),
    "noise10": _Known(Info(10, 3, *_CIFAR), *made.NOISE.values()),
    "noise100": _Known(Info(100, 3, *_CIFAR), *made.NOISE.values()),
}
_FORMS: tuple[_Form, ...] = (npz, made, cifar, idx, svhn, tfds, folders)  # the first there is read
_TELLING: tuple[_Telling, ...] = (npz, folders)


def describe(name: str, data_dir: str = "") -> Info:
    """Classes, channels, usual normalisation and size of images of a data set.

    Args:
      name: see the table above; of an unknown name its files tell all but the normalisation,
        which is that of images in [-1, 1]. The images are not read.
      data_dir: where it lies; "" is the current directory.

    Raises:
      UserError: there is no such data set, or none with such images.
    """
    if name in _KNOWN:
        return _KNOWN[name].info
    facts = _facts(name, data_dir)
    shape = facts.shape
    channels = shape[-1] if len(shape) == 4 else 1
    if channels not in (1, 3):
        raise UserError(
            f"{facts.where}: its images have {channels} channels; they must have 1 or 3"
        )
    if len(shape) not in (3, 4) or shape[1] != shape[2] or shape[1] not in SIZES:
        raise UserError(
            f"{facts.where}: the images are {list(shape)}; they must be [N, S, S, channels] or "
            f"[N, S, S], S {SIZES_IN_WORDS}"
        )
    size = shape[1] + (2 * MARGIN if shape[1] == 28 else 0)
    return Info(len(facts.classes), channels, (0.5,) * channels, (0.5,) * channels, size)


def num_train_images(name: str) -> int:
    """How many training images a data set in the table above has."""
    return _KNOWN[name].num_train


def load(name: str, split: str, data_dir: str = "") -> Split:
    """The images and labels of a split: all of them, in the order of their source, or none.

    Args:
      name: see the table above.
      split: "train" or "test".
      data_dir: where it lies, in any of the forms above, or the folder of a form itself. "" is
        the current directory, then for Fashion-MNIST Debian's own place, then TFDS's.

    Raises:
      UserError: the data set is absent, incomplete or damaged; says what would be right.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    info = describe(name, data_dir)
    place, arrays = _read(name, split, data_dir)
    return _checked(arrays, f"{place}, {split} split", info, _num_images(name, split))


def prepare(name: str, data_dir: str, target: pathlib.Path, splits: tuple[str, ...]) -> str:
    """Writes a data set as one .npz, which is fast to read; says so.

    Args:
      name: see the table above.
      data_dir: where it lies, in any form.
      target: a file NAME.npz. One that is there is replaced.
      splits: "train", "test" or both.

    Raises:
      UserError: the data set cannot be read, or the file cannot be written.
    """
    if target.suffix != ".npz":
        raise UserError(f"{target}: its name must end with .npz, to be found")
    if name in _KNOWN:  # whose classes have no names here
        classes = tuple(map(str, range(_KNOWN[name].info.num_classes)))
    else:
        classes = _facts(name, data_dir).classes
    arrays: dict[str, np.ndarray] = {"classes": np.array(classes)}
    for split in splits:
        images, labels = load(name, split, data_dir)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    try:
        with atomic.replacing(target) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # as none is called allow_pickle
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    numbers = " and ".join(f"{len(arrays[f'{split}_labels']):,} {split}" for split in splits)
    use = f"--config.data_dir={shlex.quote(str(target))}"
    return f"{target}: {numbers} images of {name}; use it with {use}"


@contextlib.contextmanager
def _reading(data_dir: str) -> Iterator[None]:
    """Makes one message of what the disk refuses, such as permissions and links in a circle."""
    try:
        yield
    except OSError as error:
        where = error.filename or data_dir or "the current directory"
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error


def _find[Form: _Form](
    forms: tuple[Form, ...], name: str, data_dir: str
) -> tuple[Form, pathlib.Path] | None:
    """The first form in which a data set is there, and its place."""
    places = ((form, form.find(name, data_dir)) for form in forms)
    return next(((form, place) for form, place in places if place), None)


def _tried(name: str, data_dir: str) -> str:
    """Where a data set could be, a line each, and that it is not there."""
    here = root(data_dir)
    if here.suffix in (".npz", ".gz") and not is_there(here):
        return f"there is no file {here}"
    absent = "" if is_there(here) else f"there is no folder {here}, and so "
    places = [place for form in _FORMS for place in form.places(name, data_dir)]
    return f"{absent}there is none of" + "".join(f"\n    {place}" for place in places)


def _facts(name: str, data_dir: str) -> Facts:
    """What the files of a data set of one's own tell.

    Raises:
      UserError: there are none, or they are damaged.
    """
    with _reading(data_dir):
        found = _find(_TELLING, name, data_dir)
        if found is None:
            known = f"unknown data set {name!r}: it is none of {', '.join(_KNOWN)}"
            raise UserError(f"{known}, and {_tried(name, data_dir)}")
        form, place = found
        return form.describe(place)


def _read(name: str, split: str, data_dir: str) -> tuple[pathlib.Path, Arrays]:
    """Where a data set is, and the images and labels of a split.

    Raises:
      UserError: it is absent or damaged.
    """
    with _reading(data_dir):
        found = _find(_FORMS, name, data_dir)
        if found is None and tfds.can_prepare(name):
            try:
                found = tfds, tfds.prepare(name, data_dir)
            except UserError as error:
                raise UserError(f"{error}\n{name}: {_tried(name, data_dir)}") from error
        if found is None:
            raise UserError(
                f"{name}: {_tried(name, data_dir)}\n"
                "Make one of them, or install what TFDS needs to download it, and run again:\n"
                "    pip install 'disguide_jax[data]'"
            )
        form, place = found
        return place, form.load(place, name, split)


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


def _checked(arrays: Arrays, where: str, info: Info, num_images: int | None) -> Split:
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
        f"{wanted:,} of each" + (": it is incomplete" if len(images) < wanted else ""),
    )
    check(
        labels.min() >= 0 and labels.max() < info.num_classes,
        f"the labels go from {labels.min()} to {labels.max()}; "
        f"they must lie between 0 and {info.num_classes - 1}",
    )
    return Split(images, labels.astype(np.int32))
