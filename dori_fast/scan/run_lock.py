"""The right to write to a run's folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from dori_fast.errors import UsageError
from dori_fast.scan.part import Part


class RunLock:
    """A whole run has the folder alone; jobs of one run share it, each number once.

    The kernel lets go of it when the process ends, however it ends.
    """

    def __init__(self, root: Path, part: Part) -> None:
        self._root, self._part, self._held = root, part, ExitStack()

    def acquire(self) -> None:
        """Raises UsageError, which names the owner, if another run or the same job writes here."""
        with ExitStack() as held:
            if self._part.whole:
                self._own(held, "")
            else:
                held.enter_context(self._shared())
                self._own(held, f"-{self._part}")
            self._held = held.pop_all()

    def release(self) -> None:
        self._held.close()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """One job at a time: jobs that start together must not each find the folder empty."""
        with nullcontext() if self._part.whole else FileLock(self._root / ".lock-joining"):
            yield

    def _own(self, held: ExitStack, name: str) -> None:
        owner = self._root / f".owner{name}"
        try:
            held.enter_context(FileLock(self._root / f".lock{name}", timeout=0))
        except Timeout:
            # where jobs stand in the way of a whole run, the last to sign is one of them
            signed = [owner] if name else sorted(self._root.glob(".owner*"), key=_signed_at)
            raise self._taken(signed[-1] if signed else owner) from None
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """The whole run's lock, shared: FileLock, which takes it for one alone, is a flock too."""
        with (self._root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._taken(self._root / ".owner") from None
            yield

    def _taken(self, owner: Path) -> UsageError:
        return UsageError(
            f"{self._root}: another run writes here ({_signature(owner)})"
            " — wait for it, stop it, or use another --out"
        )


def _signed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _signature(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"pid {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its owner has not signed yet"
