"""SIGINT and SIGTERM as an exception at a safe distance from what is committed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dori_fast.runs.errors import ScanInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXIT_SECOND = 130


class Interrupts:
    """The first signal that has come, if any."""

    def __init__(self) -> None:
        self.name: str | None = None

    def check(self) -> None:
        """Raise ScanInterrupted if a signal has come, even if its exception was swallowed."""
        if self.name is not None:
            raise ScanInterrupted(self.name)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Raise ScanInterrupted at the first SIGINT or SIGTERM; end the process at the second.

    Python allows signal handlers in the main thread only; elsewhere nothing changes.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupts.name is not None:
            # nothing to clean up: a resume removes the temporary file of an uncommitted shard
            os._exit(_EXIT_SECOND)
        interrupts.name = signal.Signals(number).name
        raise ScanInterrupted(interrupts.name)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield interrupts
    except Exception:
        # a library may turn a signal inside its callback into an error of its own
        interrupts.check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
