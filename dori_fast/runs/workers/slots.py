"""Places where workers are or may be: what handing out leases knows of processes and machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

from dori_fast.runs.workers.ledger import Lease

# long enough for a block of rows, and well below the ten seconds that schedulers grant
PARTING = 3.0


class Place(ABC):
    """A place for one worker: it may be empty, and be filled again.

    Attributes:
        number: of the place.
        lease: what the worker is to do, or is doing.
        ready: whether it may be sent leases.
        rows: rows done of the lease.
        failures: workers lost here since the last one that finished a lease.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lease: Lease | None = None
        self.ready, self.rows, self.failures = False, 0, 0
        self._heard = 0.0

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether there is a worker, or was one until this is noticed."""

    @abstractmethod
    def start(self) -> None:
        """Start a worker, which reports when it is ready."""

    @abstractmethod
    def send_lease(self) -> None:
        """Raises OSError if the worker is gone."""

    @abstractmethod
    def hear(self) -> Any:
        """What it says (see :mod:`dori_fast.runs.workers.worker`); None if it has ended."""

    @abstractmethod
    def end(self) -> str:
        """End the worker now; how it ended, if it did so before."""

    @property
    def silence(self) -> float:
        """Seconds since something was heard from it, or said to it."""
        return monotonic() - self._heard

    def touch(self) -> None:
        """Something was heard from it, or said to it."""
        self._heard = monotonic()

    def finished(self) -> Lease:
        """It has done its lease."""
        lease = self.lease
        if lease is None:
            raise RuntimeError(f"worker {self.number} finished a shard that it was not given")
        self.lease, self.rows, self.failures = None, 0, 0
        return lease

    def lost(self) -> None:
        """Forget a worker that has ended, and its lease."""
        self.lease, self.ready, self.rows = None, False, 0
        self.failures += 1


class Crew(Protocol):
    """All places of a scan, and how they are listened to."""

    @property
    def places(self) -> Sequence[Place]:
        """All of them, empty ones included."""
        ...

    def heard(self, seconds: float) -> Sequence[Place]:
        """Those whose worker has something to say, or has ended; waits so long for the first."""
        ...

    def part(self) -> None:
        """End all workers; those at work end by themselves, if they do so within ``PARTING``."""
        ...
