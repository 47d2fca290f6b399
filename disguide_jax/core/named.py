"""What a user names as package.module:name, and what it says when it fails."""

import functools
import importlib
import os
import sys
import traceback
from typing import Any

from disguide_jax.errors import UserError


def find(name: str, *, said: str) -> Any:
    """What package.module:name is; importing runs the module.

    Args:
      name: of module and object, without any prefix.
      said: what errors begin with, such as the key and its value.

    Raises:
      UserError: there is no such module or object, or the module fails.
    """
    module, _, path = name.partition(":")
    if os.getcwd() not in sys.path:  # of a console command
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = f"looked in {', '.join(path or '.' for path in sys.path[:3])}, ..."
        raise UserError(f"{said}: {error} ({where})") from error
    except Exception as error:
        raise UserError(f"{said}: importing {module} fails: {in_a_line(error)}") from error
    try:
        return functools.reduce(getattr, path.split("."), found)
    except AttributeError as error:
        raise UserError(f"{said}: {error}") from error


def in_a_line(error: Exception) -> str:
    """An exception in one line, with the place in the user's code that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return f"{message} ({place.filename}, line {place.lineno})"
