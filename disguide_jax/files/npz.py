"""Files of plain arrays, of which nothing is ever executed."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from disguide_jax.errors import UserError


def path_of(name: str, data_dir: str) -> pathlib.Path:
    """The file DATA_DIR/NAME.npz, where "" is the current directory."""
    return pathlib.Path(data_dir).expanduser().absolute() / f"{name}.npz"


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
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{path}: damaged, or not an .npz of plain arrays: {error}") from error
