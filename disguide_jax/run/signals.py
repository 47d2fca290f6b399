"""Being asked to stop: the call under way is finished, everything is saved."""

import contextlib
import contextvars
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

URGENT = (signal.SIGTERM, signal.SIGINT)  # the second one stops at once
_RECEIVED: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar(
    "received", default=None
)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that signals append themselves to, so that the call under way can be finished.

    They are SIGTERM, SIGINT, SIGHUP, and SIGUSR1 and SIGUSR2, with which a cluster announces that
    it will take its machine back. After the first one a second SIGTERM or SIGINT stops at once.
    A cluster and a terminal that goes away say so more than once, and `nohup` has it say nothing.
    Within another such list it is that one: what a run was told too late stops those after it.
    """
    outer = _RECEIVED.get()
    if outer is not None:
        yield outer
        return
    received: list[int] = []
    out = sys.stdout  # of whoever began; what a cell of an audit prints goes into a file
    signals = [*URGENT, signal.SIGUSR1, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        if signum not in received:
            received.append(signum)
        if len(received) > 1 or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            return
        for each in URGENT:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(RuntimeError):  # in the middle of another print
            print("\nStopping once this is saved; once more stops at once.", file=out, flush=True)

    try:
        before = {each: signal.signal(each, on_signal) for each in signals}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before = {}
    token = _RECEIVED.set(received)
    try:
        yield received
    finally:
        _RECEIVED.reset(token)
        for each, handler in before.items():
            signal.signal(each, handler)


def run_child(command: Sequence[str], stop: Sequence[int], **options: Any) -> int:
    """Runs a program, which is asked to stop when we are; returns its status.

    It is in a group of its own: what a terminal sends to all of a group it would get twice, and
    the second time it would not save.

    Args:
      command: of the program.
      stop: from `stop_requests`.
      **options: of subprocess.Popen.
    """
    with subprocess.Popen(command, process_group=0, **options) as child:
        while not stop:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2)
        child.send_signal(stop[0])
        return child.wait()
