"""Images by class, each in a file of its own: test/CLASS/*.png and train/CLASS/*.png, or JPEGs.

Labels are the places of the classes in the order of their names, as strings are sorted. That is
torchvision's rule too, so what was trained on such a folder there has the same labels.
"""

import io
import itertools
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tqdm
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.files.places import SPLITS, Arrays, Facts, is_folder, root

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MODES = ("L", "RGB")  # Pillow's, of gray and coloured images of 8 bits
# Of data sets with a known name: whether classes sorted by name are in the order of their labels.
SORTED = {"cifar10": True, "cifar100": True, "svhn": False, "mnist": False, "fashion_mnist": False}


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """DATA_DIR/NAME or else DATA_DIR, where there are images in this form, or None.

    The current directory itself must be asked for, as ".": what it has in test/ may be a program's.

    Raises:
      OSError: a folder cannot be read.
    """
    here = root(data_dir)
    folders = (here / name, here) if data_dir else (here / name,)
    return next((f for f in folders if any(_listed(f / s) for s in SPLITS)), None)


def places(name: str, data_dir: str) -> list[str]:
    """Where the images could be, in words."""
    here = root(data_dir)
    return [f"{here / name}/test/CLASS/*.png (or .jpg, .jpeg), likewise train, or {here}/test/..."]


def describe(place: pathlib.Path) -> Facts:
    """Classes and shape of images, as the first of them has it; the others are not read.

    Raises:
      UserError: the splits have other classes, or the first image is damaged.
      OSError: a folder cannot be read.
    """
    test, train = (_images(place / split) for split in ("test", "train"))
    for name in sorted(set(test) ^ set(train)) if test and train else ():
        lacking = place / ("train" if name in test else "test")
        raise UserError(
            f"{lacking}: there is no folder {name}; test and train must have the same classes"
        )
    split = test or train
    first = next(iter(split.values()))[0]
    num_images = sum(map(len, split.values()))
    return Facts(tuple(split), (num_images, *_read(first).shape), first)


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images [N, S, S(, 3)] uint8 and labels [N] of a split, sorted by class and by file name.

    Raises:
      UserError: there is none, or an image is damaged or unlike the others; or a data set with a
        known name has classes that do not sort in the order of its labels.
      OSError: a file or folder cannot be read.
    """
    folder = place / split
    classes = _images(folder)
    if not classes:
        raise UserError(f"{folder}: there are no images CLASS/*.png (or .jpg, .jpeg) in it")
    _check_order(folder, name, list(classes))
    files = list(itertools.chain(*classes.values()))
    like = _read(files[0])
    images = np.empty((len(files), *like.shape), np.uint8)
    reading = tqdm.tqdm(files, f"decoding {split} images", leave=False, disable=None)
    for i, path in enumerate(reading):
        image = _read(path)
        if image.shape != like.shape:
            raise UserError(
                f"{path}: the image is {_in_words(image)}, and {files[0]} is {_in_words(like)}; "
                "all must be alike"
            )
        images[i] = image
    return images, np.repeat(np.arange(len(classes)), list(map(len, classes.values())))


def _listed(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The images of each class, both sorted by name; {} where there are none."""
    if not is_folder(folder):
        return {}
    folders = sorted(path for path in _visible(folder) if is_folder(path))
    classes = {
        path.name: sorted(file for file in _visible(path) if file.suffix.lower() in SUFFIXES)
        for path in folders
    }
    return classes if any(classes.values()) else {}


def _visible(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _images(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Likewise, where every class must have images.

    Raises:
      UserError: one has none.
    """
    classes = _listed(folder)
    for name, files in classes.items():
        if not files:
            raise UserError(f"{folder / name}: there are no images in it (.png, .jpg or .jpeg)")
    return classes


def _check_order(folder: pathlib.Path, name: str, classes: list[str]) -> None:
    """Refuses folders of a data set with a known name that would get the labels of others."""
    if name not in SORTED:
        return
    digits = [re.split("[^0-9]", label, maxsplit=1)[0] for label in classes]
    numbered = [int(number or -1) for number in digits] == list(range(len(classes)))
    if not numbered and (any(digits) or not SORTED[name]):
        raise UserError(
            f"{folder}: its classes {', '.join(classes[:3])}, ... do not sort by name in the order "
            f"of {name}'s labels; let their names begin with these, 0 to 9 or 00 to 99"
        )


def _read(path: pathlib.Path) -> np.ndarray:
    """An image [H, W] or [H, W, 3]."""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{path}: the image's mode is {image.mode}; it must be gray (L) or RGB"
                )
            return np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{path}: damaged, or neither PNG nor JPEG: {error}") from error


def _in_words(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} {'RGB' if image.ndim == 3 else 'gray'}"
