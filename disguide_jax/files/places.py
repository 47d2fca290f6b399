"""What the forms of data sets on disk share: where they look, and what they tell.

Each form is a module with `find(name, data_dir)`, the place where a data set lies in it;
`places(name, data_dir)`, where it could lie, in words; and `load(place, name, split)`. Forms that
know their classes have `describe(place)`, too, and serve data sets of one's own.
"""

import errno
import os
import pathlib
import stat
from typing import NamedTuple

import numpy as np

from disguide_jax import paths

IMAGE_SIZE = 32  # of all data sets with a known name, and of what else says no size
SPLITS = ("train", "test")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

Arrays = tuple[np.ndarray, np.ndarray]  # images [N, S, S(, channels)] and labels [N], unchecked


class Facts(NamedTuple):
    """What is told of a data set of one's own without its images being read."""

    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of the images of a split, [N, S, S, channels] or [N, S, S]
    where: pathlib.Path  # the file that says so


def root(data_dir: str) -> pathlib.Path:
    """The absolute path of a `data_dir`, in which "~" stands for a home; "" is the current one.

    Raises:
      UserError: there is no such home.
    """
    return paths.expanded(data_dir).absolute()


def is_there(path: pathlib.Path) -> bool:
    """Whether there is a file or folder.

    Raises:
      OSError: nobody can tell, because of permissions or links in a circle.
    """
    return _mode(path) != 0


def is_file(path: pathlib.Path) -> bool:
    """Whether there is a file. Raises as `is_there` does."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: pathlib.Path) -> bool:
    """Whether there is a folder. Raises as `is_there` does."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: pathlib.Path) -> int:
    """What the system says of a path, or 0 where there is nothing."""
    try:
        return os.stat(path).st_mode
    except ValueError:  # a null byte
        return 0
    except OSError as error:
        if error.errno in _NOT_THERE:
            return 0
        raise
