"""The lock of a run directory, and the owner file that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dori_fast.errors import UsageError
from dori_fast.runs.store.durable import TEMPORARY
from dori_fast.runs.store.job import Job


class RunLock:
    """The right to write to a run directory.

    A job that is alone excludes every other one. Jobs of an array share the directory, each with
    a ``job_id`` of its own. The kernel releases the lock when the process ends, however it ends.
    """

    def __init__(self, root: Path, job: Job) -> None:
        self._root, self._job, self._held = root, job, ExitStack()
        self._name = "" if job.alone else f"-{job}"
        self._since = 0.0

    def acquire(self) -> None:
        """Raises UsageError, which names the owner, if another run or the same job writes here."""
        with ExitStack() as held:
            if not self._job.alone:
                held.enter_context(self._shared())
            self._own(held)
            self._held = held.pop_all()
        self._since = time.time()
        self.sign()

    def sign(self, share: float | None = None) -> None:
        """Write the owner file: who writes here, since when, and the share of the input read.

        Written atomically but not fsynced: it is worthless after a crash. A disk that refuses it
        is reported where results are written.
        """
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        text = json.dumps({**owner, "since": self._since, "share": share})
        temporary = self._root / f".owner{self._name}.{os.getpid()}{TEMPORARY}"
        with suppress(OSError):
            try:
                temporary.write_text(text + "\n")
                os.replace(temporary, self._owner)
            finally:
                # a signal may come between the two
                temporary.unlink(missing_ok=True)

    def release(self) -> None:
        self._held.close()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """One job at a time: jobs that start together must not each find the directory empty."""
        with nullcontext() if self._job.alone else FileLock(self._root / ".lock-joining"):
            yield

    @property
    def _owner(self) -> Path:
        return self._root / f".owner{self._name}"

    def _own(self, held: ExitStack) -> None:
        try:
            held.enter_context(FileLock(self._root / f".lock{self._name}", timeout=0))
        except Timeout:
            # if jobs exclude this run, the last one to sign still runs
            jobs = [] if self._name else sorted(self._root.glob(".owner*[!p]"), key=_signed_at)
            raise self._taken(jobs[-1] if jobs else self._owner) from None

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """A shared lock on the file that a job alone locks; FileLock too is a flock."""
        with (self._root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._taken(self._root / ".owner") from None
            yield

    def _taken(self, owner: Path) -> UsageError:
        return UsageError(
            f"{self._root}: another run writes here ({_signature(owner)});"
            " wait for it, stop it, or use another --out"
        )


def _signed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _signature(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"pid {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its owner has not signed yet"
