"""A workdir taken up: is it the same run, is it finished, where does it stand."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from disguide_jax.config import Config, VictimTrainingConfig
from disguide_jax.core import machines
from disguide_jax.errors import UserError, disk_errors
from disguide_jax.files import workdir as files
from disguide_jax.files.checkpoint import Checkpoints


def take_up[Kind: (Config, VictimTrainingConfig)](
    workdir: pathlib.Path,
    config: Kind,
    contents: files.Hashes,
    places: dict[str, str],
    *,
    extend: bool = False,
) -> tuple[Kind, dict[str, Any] | None]:
    """The configuration to go on with, and what config.json holds, None in a new workdir.

    Args:
      workdir: that may hold a run.
      config: that is asked for.
      contents: hashes of what the run is given.
      places: what was hashed, for messages.
      extend: accept a larger budget.

    Raises:
      UserError: the workdir holds another run.
    """
    started = files.read_started(workdir)
    if started is None:
        return config, None
    before = started.get("contents")
    # What is in the victim's file counts, not where it lies.
    ignoring = ("victim.weights", "victim.endpoint") if before else ()
    files.refuse_other_config(started["config"], config, workdir, extend=extend, ignoring=ignoring)
    files.refuse_other_contents(before, contents, places, workdir)
    return files.adopt(config, started), started


@contextlib.contextmanager
def opened(workdir: pathlib.Path, *, replay_too: bool = True) -> Iterator[Checkpoints]:
    """The checkpoints of a workdir, which is made if absent and locked meanwhile.

    Args:
      workdir: of one process at a time.
      replay_too: see `Checkpoints`.

    Raises:
      UserError: it cannot be made or written, or another process holds it.
    """
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:  # orbax logs tracebacks
        raise UserError(
            f"--workdir: the name of {workdir.absolute()} is not UTF-8; choose another, or a "
            "locale of UTF-8, such as LC_ALL=C.UTF-8"
        ) from error
    make_folder(workdir, "--workdir")
    folder = workdir / "checkpoints"
    with (
        disk_errors(workdir),
        _locked(workdir),
        Checkpoints(folder, replay_too=replay_too) as saved,
    ):
        yield saved


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Locks a workdir, for all processes of a run, of which the first holds it."""
    with files.lock(workdir) if machines.is_first() else contextlib.nullcontext():
        machines.meet()
        elsewhere = machines.differing(files.holder(workdir))
        if elsewhere:
            raise UserError(
                f"process {elsewhere} does not find in {workdir} what process 0 "
                "wrote there; --workdir must be on a file system that all processes share"
            )
        yield


def make_folder(folder: pathlib.Path, key: str) -> None:
    """Makes a folder that a user has named.

    Raises:
      UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        files = [path for path in (folder, *folder.parents) if path.is_file()]
        said = f"{files[0].absolute()} is a file" if files else error.strerror
        raise UserError(f"{key}: cannot make the folder {folder}: {said}") from error
