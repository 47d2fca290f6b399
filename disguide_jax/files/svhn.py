"""SVHN's own files of cropped digits, which MATLAB wrote."""

import pathlib

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files.places import IMAGE_SIZE, SPLITS, Arrays, is_there, root

FOLDERS = ("", "SVHN", "svhn")


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder in which SVHN lies in this format, or None.

    Args:
      name: of the data set.
      data_dir: where its files are; "" is the current directory.
    """
    if name != "svhn":
        return None
    folders = [root(data_dir) / folder for folder in FOLDERS]
    return next((f for f in folders if any(is_there(_path(f, split)) for split in SPLITS)), None)


def places(name: str, data_dir: str) -> list[str]:
    """Where the data set could be in this format, in words; [] where it is not SVHN."""
    if name != "svhn":
        return []
    return [f"{_path(root(data_dir), 'test')} and train_32x32.mat, or below it in SVHN or svhn"]


def load(place: pathlib.Path, name: str, split: str) -> Arrays:
    """Images [N, 32, 32, 3] uint8 and labels [N] of a split.

    Raises:
      UserError: the file is absent or damaged.
      OSError: the file cannot be read.
    """
    import scipy.io  # takes a moment

    path = _path(place, split)
    if not is_there(path):
        raise UserError(f"{place}: there is no {path.name}")
    with path.open("rb") as file:
        try:
            content = scipy.io.loadmat(file, variable_names=("X", "y"))
            images, labels = content["X"], content["y"].reshape(-1)
            if images.shape[:-1] != (IMAGE_SIZE, IMAGE_SIZE, 3):
                raise ValueError(f"X is {list(images.shape)} instead of [32, 32, 3, N]")
            return np.moveaxis(images, -1, 0), np.where(labels == 10, 0, labels)  # 10 is digit 0
        except Exception as error:  # there is no end to what damage can raise
            raise UserError(f"{path}: damaged, or no file of SVHN: {error}") from error


def _path(folder: pathlib.Path, split: str) -> pathlib.Path:
    return folder / f"{split}_32x32.mat"
