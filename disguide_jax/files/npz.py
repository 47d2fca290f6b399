"""Files of plain arrays, of which nothing is ever executed, and data sets in them."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import made
from disguide_jax.files.places import Arrays, Facts, is_folder, is_there, root

IN_WORDS = "train_images, train_labels, test_images, test_labels and classes"


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """DATA_DIR/NAME.npz, or DATA_DIR itself where that is an .npz, or None.

    Data sets that are always at hand are not sought in an .npz of another name.
    """
    path = _path_of(name, data_dir)
    return path if is_there(path) else None


def places(name: str, data_dir: str) -> list[str]:
    """The one place where it could be, in words."""
    return [f"{_path_of(name, data_dir)} with {IN_WORDS}"]


def describe(place: pathlib.Path) -> Facts:
    """Classes and shape of images; the images are not read.

    Raises:
      UserError: the file is damaged, or says neither.
    """
    classes = read(place, "classes")
    shapes = read_shapes(place, "test_images", "train_images")
    if not classes or classes["classes"].ndim != 1 or not shapes:
        raise UserError(f"{place}: it must hold {IN_WORDS} (names of the classes, [K])")
    return Facts(tuple(map(str, classes["classes"])), next(iter(shapes.values())), place)


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images and labels of a split, as they were written.

    Raises:
      UserError: the file is damaged, or has no such split.
    """
    names = f"{split}_images", f"{split}_labels"
    arrays = read(place, *names)
    absent = [name for name in names if name not in arrays]
    if absent:
        raise UserError(
            f"{place}: it has no {' and no '.join(absent)}, so its {split} split cannot be used"
        )
    return arrays[names[0]], arrays[names[1]]


def _path_of(name: str, data_dir: str) -> pathlib.Path:
    here = root(data_dir)
    itself = here.suffix == ".npz" and not is_folder(here) and name not in made.NAMES
    return here if itself else here / f"{name}.npz"


def read(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
    """Those of the named arrays that are there.

    Raises:
      UserError: the file is damaged, or holds pickled objects under these names.
    """
    # Opened here, as np.load forgets to close what is damaged. A pickle could run anything.
    with (
        _telling_damage(path),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as npz,
    ):
        return {name: npz[name] for name in names if name in npz.files}


def read_shapes(path: pathlib.Path, *names: str) -> dict[str, tuple[int, ...]]:
    """The shapes of those of the named arrays that are there; their content is not read.

    Raises:
      UserError: the file is damaged.
    """
    with _telling_damage(path), zipfile.ZipFile(path) as archive:
        there = [name for name in names if f"{name}.npy" in archive.namelist()]
        return {name: _shape_of(archive, f"{name}.npy") for name in there}


def _shape_of(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            return np.lib.format.read_array_header_1_0(file)[0]
        return np.lib.format.read_array_header_2_0(file)[0]


@contextlib.contextmanager
def _telling_damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{path}: damaged, or not an .npz of plain arrays: {error}") from error
