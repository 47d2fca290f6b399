"""The one exception that a user is meant to see."""

import contextlib
import pathlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in the configuration, a file or the machine, not in the program.

    Its message says what was wrong, where, and what would be right. Programs print it
    without a traceback and exit with status 2.
    """


@contextlib.contextmanager
def disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Makes a UserError of what the disk below `folder` refuses to do, full or read-only."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror or error}. What was "
            "saved before stays usable. Mend that, then run the same command again."
        ) from error
