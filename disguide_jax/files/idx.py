"""MNIST's own file format, in which MNIST and Fashion-MNIST lie on many disks, gzipped or not."""

import gzip
import math
import pathlib
import zlib

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files.places import Arrays, is_file, root

FOLDERS = {  # below DATA_DIR, as torchvision has them
    "mnist": ("", "raw", "MNIST/raw", "MNIST"),
    "fashion_mnist": ("", "raw", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist"),
}
SYSTEM = {  # where a package of the operating system puts them
    "fashion_mnist": pathlib.Path("/usr/share/datasets/fashion-mnist")
}
PACKAGES = {"fashion_mnist": "apt-get install dataset-fashion-mnist"}  # Debian's and Ubuntu's
PREFIXES = {"train": "train", "test": "t10k"}
NUM_AXES = {"images": 3, "labels": 1}
UNSIGNED_BYTES = 8  # the code of their type


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder in which a data set lies in this format, or None.

    Args:
      name: of the data set.
      data_dir: where it or torchvision's folders of it are; "" is the current directory, and
        then the operating system's own place.
    """
    folders = [root(data_dir) / folder for folder in FOLDERS.get(name, ())]
    if not data_dir and name in SYSTEM:
        folders.append(SYSTEM[name])
    return next((f for f in folders if any(_path(f, p, "images") for p in PREFIXES.values())), None)


def places(name: str, data_dir: str) -> list[str]:
    """Where the data set could be in this format, in words; [] where there is no such data set."""
    if name not in FOLDERS:
        return []
    folders = " or ".join(folder for folder in FOLDERS[name] if folder)
    place = (
        f"{root(data_dir)}/t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte and the same of train, "
        f"gzipped (.gz) or not, or below it in {folders}"
    )
    return [place + (f" ({PACKAGES[name]})" if name in PACKAGES else "")]


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images [N, 28, 28] uint8 and labels [N] of a split.

    Raises:
      UserError: a file is absent or damaged.
      OSError: a file cannot be read.
    """
    images, labels = (_read(place, PREFIXES[split], kind) for kind in NUM_AXES)
    return images, labels


def _path(folder: pathlib.Path, prefix: str, kind: str) -> pathlib.Path | None:
    """The file of a kind, images or labels, by any of its usual names."""
    names = (f"{prefix}-{kind}{dot}idx{NUM_AXES[kind]}-ubyte" for dot in "-.")
    paths = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if is_file(path)), None)


def _read(folder: pathlib.Path, prefix: str, kind: str) -> np.ndarray:
    num_axes = NUM_AXES[kind]
    path = _path(folder, prefix, kind)
    if path is None:
        raise UserError(f"{folder}: there is no {prefix}-{kind}-idx{num_axes}-ubyte or .gz")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged, or not gzipped: {error}") from error
    start = 4 * (1 + num_axes)
    if not content.startswith(bytes([0, 0, UNSIGNED_BYTES, num_axes])) or len(content) < start:
        raise UserError(f"{path}: no idx file of {num_axes} axes of unsigned bytes")
    shape = tuple(map(int, np.frombuffer(content[4:start], ">u4")))
    found = len(content) - start
    if found != math.prod(shape):
        raise UserError(
            f"{path}: cut or damaged: of {' x '.join(map(str, shape))} it must hold "
            f"{math.prod(shape):,} bytes, and it has {found:,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
