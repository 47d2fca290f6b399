"""The one exception that a user is meant to see."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator

MAX_LISTED = 8  # lines of a list in one message


class UserError(Exception):
    """A mistake in the configuration, a file or the machine, not in the program.

    Its message says what was wrong, where, and what would be right. Programs print it
    without a traceback and exit with status 2.
    """


def exit_status(main: Callable[[], int | None]) -> int:
    """What a program that calls `main` exits with; a user's mistake is one message and 2."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def listed(lines: list[str]) -> str:
    """The first lines of a list below each other, and how many more there are."""
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n  ".join(lines[:MAX_LISTED] + more)


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
