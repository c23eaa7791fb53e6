"""A worker as it lives in an actor of a Ray cluster."""

from __future__ import annotations

import socket
import threading

from dori_fast.runs.workers.ledger import Lease
from dori_fast.runs.workers.worker import Beat, Done, Failed, Ready, Worker, failure, known_answer

# doing a lease, telling of it, and being stopped; a beat nobody hears any more may not have ended
CALLS_AT_ONCE = 4


class Remote:
    """Called by several threads at once, of which one does a lease. No call raises."""

    def __init__(self) -> None:
        self._lease: int | None = None
        self._rows, self._stopped, self._changed = 0, False, threading.Condition()

    def node(self) -> str:
        """The machine that the actor was given."""
        return socket.gethostname()

    def prepare(self, order: bytes) -> Ready | Failed:
        """Become what :func:`dori_fast.runs.workers.worker.order` says."""
        try:
            self._worker = Worker(order)
            return known_answer(self._worker.model)
        except Exception as error:
            return failure(error)

    def do(self, lease: Lease) -> Done | Failed:
        """Do a lease."""
        try:
            self._tell(lease.index, 0)
            return self._worker.do(lease, lambda rows: self._tell(lease.index, rows))
        except Exception as error:
            return failure(error)
        finally:
            self._lease = None

    def beat(self, index: int, known: int) -> Beat:
        """Rows done of a lease, once it is begun and they are others than is known."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lease is not None and (self._lease, self._rows) != (index, known)
            )
            return Beat(self._rows)

    def stop(self) -> None:
        """Let the lease at work fail when it next has something to say."""
        self._stopped = True

    def _tell(self, lease: int, rows: int) -> None:
        if self._stopped:
            raise RuntimeError("stopped")
        with self._changed:
            self._lease, self._rows = lease, rows
            self._changed.notify_all()
