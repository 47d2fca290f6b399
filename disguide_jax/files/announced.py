"""What the processes of one run tell the first of the files that they add to its checkpoint."""

import json
import pathlib
import threading

from disguide_jax.core import machines
from disguide_jax.errors import UserError
from disguide_jax.files import atomic

Sealed = dict[str, tuple[int, int]]  # path in the directory of the checkpoints -> bytes, CRC-32
SECONDS_BETWEEN_LOOKS = 0.05


def announce(directory: pathlib.Path, name: str, files: Sealed) -> None:
    """Says that this process has written its files of the checkpoint `name`."""
    atomic.write_json(_path(directory, name, machines.index()), files)


def by_others(directory: pathlib.Path, name: str, given_up: threading.Event) -> Sealed:
    """Waits for all the other processes; returns what they have written.

    Args:
      directory: of the checkpoints.
      name: of this one.
      given_up: set when nobody waits for it any more.

    Raises:
      UserError: it was set.
    """
    files: Sealed = {}
    for process in range(1, machines.count()):
        path = _path(directory, name, process)
        while not path.exists():
            if given_up.wait(SECONDS_BETWEEN_LOOKS):
                raise UserError(f"{directory / name}: process {process} has not written its part")
        files |= {file: tuple(sealed) for file, sealed in json.loads(path.read_text()).items()}
    return files


def _path(directory: pathlib.Path, name: str, process: int) -> pathlib.Path:
    return directory / "replay" / f"{name}.process-{process}"
