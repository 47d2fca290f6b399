"""Files of plain arrays, of which nothing is ever executed."""

import pathlib

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
    try:
        # Opened here, as np.load forgets to close what is damaged. A pickle could run anything.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
            return {name: npz[name] for name in names if name in npz.files}
    except Exception as error:  # there is no end to what damage can raise
        raise UserError(f"{path}: damaged, or not an .npz of plain arrays: {error}") from error
