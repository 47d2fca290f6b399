"""Paths as users write them: `~` is a home, and what is not there is said with its whole path."""

import os
import pathlib

from disguide_jax.errors import UserError

type StrPath = str | os.PathLike[str]


def expanded(path: StrPath) -> pathlib.Path:
    """A path in which a leading ~ or ~USER is that home.

    Raises:
      UserError: there is no such home.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: it begins with ~, but there is no such home") from error


def readable(path: StrPath) -> pathlib.Path:
    """The same, of a file that is there.

    Raises:
      UserError: there is none, or it is a folder.
    """
    found = expanded(path)
    if not found.is_file():
        raise UserError(absent(found))
    return found


def writable(path: StrPath) -> pathlib.Path:
    """The same, of a file that is to be written.

    Raises:
      UserError: there is a folder of this name.
    """
    found = expanded(path)
    if found.is_dir():
        raise UserError(f"{found} is a folder; name a file")
    return found


def absent(path: pathlib.Path) -> str:
    """What to say of a path that is no file."""
    if path.is_dir():
        return f"{path} is a folder; name a file"
    return f"there is no file {path}{looked_for(path)}"


def looked_for(path: pathlib.Path) -> str:
    """What to add to a path that was not found: where that is, if it does not say so."""
    return "" if path.is_absolute() else f" (looked for {path.absolute()})"
