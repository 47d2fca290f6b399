"""CIFAR's own files, pickles of Python 2, in a folder or in the archive it is downloaded as.

Nothing in them is ever executed, and nothing of an archive is ever unpacked on disk.
"""

import io
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import inert
from disguide_jax.files.places import IMAGE_SIZE, Arrays, is_file, is_folder, is_there, root

MOST_BYTES = 2**28  # of a file in an archive; the largest, of all training images, has 156 MB


class _Layout(NamedTuple):
    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]  # of each split
    labels: str  # their key


LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "labels",
    ),
    "cifar100": _Layout(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        {"train": ("train",), "test": ("test",)},
        "fine_labels",
    ),
}


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder or archive in which a data set lies in this format, or None.

    Args:
      name: of the data set.
      data_dir: its folder or archive, or where that lies; "" is the current directory.
    """
    if name not in LAYOUTS:
        return None
    layout, here = LAYOUTS[name], root(data_dir)
    if here.name.endswith(".tar.gz"):
        return here if is_file(here) else None
    for folder in (here / layout.folder, here):
        if any(is_file(folder / file) for files in layout.files.values() for file in files):
            return folder
    archive = here / layout.archive
    return archive if is_there(archive) else None


def places(name: str, data_dir: str) -> list[str]:
    """Where the data set could be in this format, in words; [] where there is no such data set."""
    if name not in LAYOUTS:
        return []
    layout, here = LAYOUTS[name], root(data_dir)
    files = layout.files["test"][0]
    return [
        f"{here / layout.folder} with {files}, ..., as torchvision leaves it, or {files}, ... in "
        f"{here} itself",
        f"{here / layout.archive}, as it is downloaded",
    ]


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images [N, 32, 32, 3] uint8 and labels [N] of a split.

    Raises:
      UserError: a file is absent, damaged or malicious.
      OSError: a file cannot be read.
    """
    layout = LAYOUTS[name]
    if is_folder(place):
        paths = {file: place / file for file in layout.files[split]}
        contents = {file: path.read_bytes() for file, path in paths.items() if is_there(path)}
    else:
        contents = _read_archive(place, layout.folder, layout.files[split])
    absent = [file for file in layout.files[split] if file not in contents]
    if absent:
        raise UserError(f"{place}: there is no {' and no '.join(absent)} in it: it is incomplete")
    batches = [_batch(contents[file], name, place / file) for file in layout.files[split]]
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read_archive(path: pathlib.Path, folder: str, files: tuple[str, ...]) -> dict[str, bytes]:
    """Those of the files in a folder of an archive that are there, and plain files."""
    contents: dict[str, bytes] = {}
    with path.open("rb") as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:gz") as archive:
                for member in archive:  # in its order, as going back would unzip it all again
                    parent, _, file = member.name.removeprefix("./").rpartition("/")
                    if parent != folder or file not in files or not member.isreg():
                        continue
                    if member.size > MOST_BYTES:
                        raise ValueError(f"{member.name} has {member.size:,} bytes")
                    content = archive.extractfile(member)
                    contents[file] = content.read() if content else b""
                    if len(contents) == len(files):
                        break
        except Exception as error:  # there is no end to what damage can raise
            raise UserError(
                f"{path}: damaged, or no .tar.gz: {error}; download it again"
            ) from error
    return contents


def _batch(content: bytes, name: str, where: pathlib.Path) -> Arrays:
    """Images [N, 32, 32, 3] and labels [N] of one file."""
    labels_key = LAYOUTS[name].labels
    try:
        batch = inert.Unpickler(io.BytesIO(content)).load_checked()
        if not isinstance(batch, dict):
            raise ValueError("its pickle holds no dict")
        pixels, labels = inert.array(batch.get("data")), batch.get(labels_key)
        if pixels is None or not isinstance(labels, list):
            raise ValueError(f"it has no array of data, or no list of {labels_key}")
        if not all(type(label) is int for label in labels):
            raise ValueError(f"its {labels_key} are not all integers")
        if pixels.dtype != np.uint8:
            raise ValueError("its data are not bytes")
        if pixels.ndim != 2 or pixels.shape[1] != 3 * IMAGE_SIZE**2:
            raise ValueError(f"its data are {list(pixels.shape)} instead of [N, 3072]")
        planes = pixels.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        return planes.transpose(0, 2, 3, 1), np.array(labels, np.int64)
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{where}: damaged, or no file of {name}: {error}") from error
