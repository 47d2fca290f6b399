"""MNIST's own file format, in which MNIST and Fashion-MNIST lie on many disks, gzipped or not."""

import gzip
import math
import pathlib
import zlib

import numpy as np

from disguide_jax.errors import UserError

FOLDERS = {  # below DATA_DIR, as torchvision has them
    "mnist": ("", "raw", "MNIST/raw", "MNIST"),
    "fashion_mnist": ("", "raw", "FashionMNIST/raw", "FashionMNIST"),
}
SYSTEM = {  # where a package of the operating system puts them
    "fashion_mnist": pathlib.Path("/usr/share/datasets/fashion-mnist")
}
PACKAGES = {"fashion_mnist": "apt-get install dataset-fashion-mnist"}  # Debian's and Ubuntu's
PREFIXES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTES = 8  # the code of their type


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder in which a data set lies in this format, or None.

    Args:
      name: of the data set.
      data_dir: where it or torchvision's folders of it are; "" is the current directory, and
        then the operating system's own place.
    """
    root = pathlib.Path(data_dir).expanduser().absolute()
    folders = [root / folder for folder in FOLDERS.get(name, ())]
    if not data_dir and name in SYSTEM:
        folders.append(SYSTEM[name])
    kinds = [f"{prefix}-images" for prefix in PREFIXES.values()]
    return next((f for f in folders if any(_path(f, kind) for kind in kinds)), None)


def places(name: str, data_dir: str) -> list[str]:
    """Where the data set could be in this format, in words; [] where there is no such data set."""
    if name not in FOLDERS:
        return []
    place = f"its *-images-idx3-ubyte and *-labels-idx1-ubyte files in {data_dir or '.'}"
    package = f" (on Debian and Ubuntu: {PACKAGES[name]})" if name in PACKAGES else ""
    return [place + package]


def load(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] uint8 and labels [N] of a split.

    Raises:
      UserError: a file is absent or damaged.
    """
    images, labels = (
        _read(folder, f"{PREFIXES[split]}-{kind}", num_axes)
        for kind, num_axes in (("images", 3), ("labels", 1))
    )
    return images, labels


def _path(folder: pathlib.Path, kind: str) -> pathlib.Path | None:
    """The file of a kind such as "t10k-labels", by any of its usual names."""
    paths = sorted(folder.glob(f"{kind}[-.]idx*-ubyte*"))
    return next((p for p in paths if p.name.endswith(("ubyte", "ubyte.gz"))), None)


def _read(folder: pathlib.Path, kind: str, num_axes: int) -> np.ndarray:
    path = _path(folder, kind)
    if path is None:
        raise UserError(f"{folder}: there is no {kind}-idx{num_axes}-ubyte or .gz")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or unreadable: {error}") from error
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
