"""A worker process as its parent sees it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from dori_fast.scan import worker
from dori_fast.scan.ledger import Lease

# long enough for a block of rows, and well below the ten seconds that schedulers grant
_PARTING = 3.0
_spawn = multiprocessing.get_context("spawn")


class WorkerProcess:
    """One place for a process: it may be empty, and be filled again.

    Attributes:
        number: of the place.
        lease: what the process is to do, or is doing.
        ready: whether it may be sent leases.
        rows: rows done of the lease.
        failures: processes lost here since the last one that finished a lease.
    """

    connection: Connection

    def __init__(self, number: int, order: bytes) -> None:
        self.number, self._order = number, order
        self.lease: Lease | None = None
        self.ready, self.rows, self.failures = False, 0, 0
        self._process: Any = None
        self._heard = 0.0

    @property
    def started(self) -> bool:
        """Whether there is a process, or was one until this is noticed."""
        return self._process is not None

    @property
    def silence(self) -> float:
        """Seconds since something was heard from it, or said to it."""
        return monotonic() - self._heard

    def start(self) -> None:
        """Start a process, which reports when it is ready."""
        self.connection, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=worker.run,
            args=(theirs, self._order),
            name=f"dori-fast worker {self.number}",
            daemon=True,
        )
        with _out_of_reach_of_the_terminal():
            self._process.start()
        # or its end would not close the connection
        theirs.close()
        self.ready, self._heard = False, monotonic()

    def send_lease(self) -> None:
        """Raises OSError if the process is gone."""
        self._heard = monotonic()
        self.connection.send(self.lease)

    def hear(self) -> Any:
        """What it says, once there is something; None if it has ended."""
        self._heard = monotonic()
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def finished(self) -> Lease:
        """It has done its lease."""
        lease = self.lease
        if lease is None:
            raise RuntimeError(f"worker {self.number} finished a shard that it was not given")
        self.lease, self.rows, self.failures = None, 0, 0
        return lease

    def end(self) -> str:
        """End the process now; how it ended, if it did so before."""
        self._process.join(0.5)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        if code is None:
            return "was ended"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def lost(self) -> None:
        """Forget a process that has ended, and its lease."""
        self.connection.close()
        self._process, self.lease, self.ready, self.rows = None, None, False, 0
        self.failures += 1


def part_from(workers: Sequence[WorkerProcess]) -> None:
    """End processes; those at work end by themselves, which spares a device a kernel cut short."""
    running = [w for w in workers if w.started]
    for w in running:
        w.connection.close()
    deadline = monotonic() + _PARTING
    for w in running:
        if w.ready:
            w._process.join(max(0.0, deadline - monotonic()))
        w.end()


@contextmanager
def _out_of_reach_of_the_terminal() -> Iterator[None]:
    """A process started within never sees Ctrl-C, which a terminal sends to all at once."""
    # starting it later would let the signal in again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
