"""What a user is meant to see of errors, and how a program ends: a message and a status."""

import contextlib
import errno
import io
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE}

MAX_LISTED = 8  # lines of a list in one message


class UserError(Exception):
    """A mistake in the configuration, a file or the machine, not in the program.

    Its message says what was wrong, where, and what would be right. Programs print it
    without a traceback and exit with status 2.
    """


class Stopped(Exception):  # noqa: N818
    """A program was asked to stop and is saved; `signum` is the signal that asked."""

    def __init__(self, signum: int, done: str):
        super().__init__(f"Stopped after {done}; everything is saved.")
        self.signum = signum


def exit_status(main: Callable[[], int | None]) -> int:
    """What a program that calls `main` exits with, which is the last that it does.

    A user's mistake is one message and 2, a signal 128 and its number. What takes long to import
    should be imported by `main`: Ctrl-C is one line from here on, and no traceback.
    """
    os.environ.pop("MPLBACKEND", None)  # of whoever started us; we open no windows
    _open_streams()
    interrupted: list[int] = []

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        interrupted.append(signum)
        _handle_interrupts(signal.SIG_DFL)  # the second one ends the process at once
        if _is_importing(frame):  # where an exception can become another, or a traceback
            _end_interrupted()
        sys.unraisablehook = _end_interrupted  # where it would be lost
        raise KeyboardInterrupt

    _handle_interrupts(on_interrupt)
    try:
        import logging  # takes long, for Ctrl-C

        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns who has no home
        return main() or 0
    except Stopped as stopped:
        print(f"{stopped} Continue with\n  {_command(main)}", flush=True)
        return 128 + stopped.signum
    except UserError as error:
        return _refuse(str(error))
    except BaseException as error:
        if interrupted:  # of which libraries make other exceptions
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        said = _machines_fault(error)
        if said is None:
            raise
        return _refuse(said)
    finally:
        _handle_interrupts(signal.SIG_DFL)  # while Python takes itself apart


def _command(main: Callable[[], int | None]) -> str:
    """What starts the program of `main` again, to be pasted."""
    spec, module = sys.modules["__main__"].__spec__, main.__module__
    if module == "__main__" and spec is not None:
        module = spec.name
    program = [sys.argv[0]] if module == "__main__" else ["-m", module]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _machines_fault(error: BaseException) -> str | None:
    """What to say where not the program is wrong but a file or a device is not there."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{_path_of(error)}: {error.strerror}"
    jax = sys.modules.get("jax")
    try:
        _ = jax and jax.devices()
    except Exception as absent:  # JAX says it in several ways
        asked = os.environ.get("JAX_PLATFORMS", "")
        what = f"JAX finds no device: JAX_PLATFORMS is {asked!r}; set it to cpu, or leave it out"
        return f"{what}. {absent}" if str(absent) else what
    return None


def _handle_interrupts(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # of what a shell runs behind it
            signal.signal(signal.SIGINT, handler)


def _end_interrupted(lost: object = None) -> None:
    del lost
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


class _Spoken(io.TextIOWrapper):
    """A standard stream. What nobody takes is dropped: a run is worth more than what it says."""

    def write(self, text: str) -> int:
        """Writes what it can; a closed pipe, a terminal gone and a full disk are no errors."""
        with self._forgiving():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Brings it there, if it can."""
        with self._forgiving():
            super().flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:  # by who shares it with us and is slow
            pass
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def _open_streams() -> None:
    """Makes standard streams that never fail, whichever of them the process was given."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # or else the next file gets this number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # someone listens within the process
            continue
        _open_stream(descriptor, name, stream.encoding if stream else "utf-8")


def _open_stream(descriptor: int, name: str, encoding: str) -> None:
    buffer = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False))
    spoken = _Spoken(buffer, encoding, "backslashreplace", line_buffering=True)
    setattr(sys, name, spoken)
    setattr(sys, f"__{name}__", spoken)


def divert(descriptor: int, file: int) -> int:
    """Sends what C libraries print, 1 or 2, to another file; what we print goes where it went.

    Returns:
      A descriptor of where it went.
    """
    name = {1: "stdout", 2: "stderr"}[descriptor]
    stream: TextIO = getattr(sys, name)
    stream.flush()
    kept = os.dup(descriptor)
    os.dup2(file, descriptor)
    _open_stream(kept, name, stream.encoding)
    return kept


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
        if not _is_of_disk(error, folder):
            raise
        raise UserError(
            f"{_path_of(error) or folder}: cannot be written: {error.strerror or error}. What was "
            "saved before stays usable. Mend that, then run the same command again."
        ) from error


def _is_of_disk(error: OSError, folder: pathlib.Path) -> bool:
    if error.errno in DISK:
        return True
    path = _path_of(error)
    return path is not None and pathlib.Path(path).absolute().is_relative_to(folder.absolute())


def _path_of(error: OSError) -> str | None:
    """The file that an error is about, if it is about one."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    return None
