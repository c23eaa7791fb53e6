"""Slots for workers: the supervisor's view of processes and machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

from dori_fast.runs.workers.ledger import Lease

# long enough for a block of rows, and well below the ten seconds that schedulers grant
STOP_SECONDS = 3.0


class Slot(ABC):
    """A slot for one worker; it may be empty, and be filled again.

    Attributes:
        number: number of the slot.
        lease: lease that the worker has, or will get once it is ready.
        ready: True once the worker may be sent leases.
        rows: rows done of the lease.
        failures: workers lost here since the last one that finished a lease.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lease: Lease | None = None
        self.ready, self.rows, self.failures = False, 0, 0
        self._touched = 0.0

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether there is a worker, or one whose end was not noticed yet."""

    @abstractmethod
    def start(self) -> None:
        """Start a worker, which sends a message when it is ready."""

    @abstractmethod
    def send_lease(self) -> None:
        """Send the lease to the worker; OSError if the worker is gone."""

    @abstractmethod
    def receive(self) -> Any:
        """The worker's message (:mod:`dori_fast.runs.workers.worker`); None if it has ended."""

    @abstractmethod
    def end(self) -> str:
        """End the worker now and return how it ended, also if it had ended before."""

    @property
    def silence(self) -> float:
        """Seconds since the last message from or to the worker."""
        return monotonic() - self._touched

    def touch(self) -> None:
        """Note that a message came or went."""
        self._touched = monotonic()

    def finished(self) -> Lease:
        """Note that the worker has finished its lease, and return the lease."""
        lease = self.lease
        if lease is None:
            raise RuntimeError(f"worker {self.number} finished a shard that it was not given")
        self.lease, self.rows, self.failures = None, 0, 0
        return lease

    def lost(self) -> None:
        """Empty the slot of a worker that has ended; its lease is dropped."""
        self.lease, self.ready, self.rows = None, False, 0
        self.failures += 1


class Slots(Protocol):
    """All slots of a scan, on this machine or on others."""

    @property
    def all(self) -> Sequence[Slot]:
        """All slots, empty ones included."""
        ...

    def wait(self, seconds: float) -> Sequence[Slot]:
        """Slots whose worker sent a message or ended; waits at most ``seconds`` for the first."""
        ...

    def stop(self) -> None:
        """End all workers; those at work have ``STOP_SECONDS`` to end by themselves."""
        ...
