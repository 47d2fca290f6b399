"""Files that are either whole or not there, whenever the process or the machine stops."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: pathlib.Path, mode: str = "wb", *, shared: bool = False) -> Iterator[IO[Any]]:
    """Opens a part file that takes the place of `path` when the block ends without an error.

    The content is on the disk before it gets the name. After an error the part file is gone and
    `path` is what it was.

    Args:
      path: of the file; its directory exists.
      mode: "wb" or "w".
      shared: whether others may write the same file meanwhile. The last to finish wins.

    Raises:
      OSError: it cannot be written.
    """
    # A name that is always the same, so that the next write takes away what a killed process left.
    name = f"{path.name}.{secrets.token_hex(8)}" if shared else path.name
    part = path.with_name(f".{name}.part")
    try:
        with part.open(mode) as file:
            yield file
            flush(file)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def flush(file: IO[Any]) -> None:
    """Brings what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: pathlib.Path) -> None:
    """Brings a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is either whole or not there."""
    with replacing(path, "w") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")
