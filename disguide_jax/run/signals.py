"""Being asked to stop: the call under way is finished, everything is saved."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):  # noqa: N818
    """A run was asked to stop and is saved; `signum` is the signal that asked."""

    def __init__(self, signum: int, done: str):
        super().__init__(f"Stopped after {done}; everything is saved.")
        self.signum = signum


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append themselves to, so that a call can be finished.

    After the first one signals do again what they always do: a second one stops at once.
    """
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        received.append(signum)
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        print("\nStopping once this is saved; once more stops at once.", flush=True)

    try:
        before = {each: signal.signal(each, on_signal) for each in signals}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before = {}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
