"""Who does the leases of a scan: the seam between the ledger and processes or machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.store.shard import Footer, commit_shard
from dori_fast.runs.workers.ledger import Lease, Ledger

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser
    from dori_fast.runs.scoring.decision import Decision


@dataclass(frozen=True)
class Work:
    """What doing a lease takes besides a model; it can be sent to another process or machine."""

    detector: Detector
    decision: Decision | None
    run_hash: str


def do_lease(model: Denoiser, work: Work, lease: Lease, on_block: Callable[[int], None]) -> Footer:
    """Score a lease and commit its shard: what every engine does, wherever it is.

    Doing a lease twice is no harm: the same bytes get the same name.

    Args:
        model: the run's model.
        work: how.
        lease: which rows, and where to.
        on_block: called with the number of rows handled so far, about every second.

    Raises:
        StorageError: the disk refused; what was committed before is intact.
    """
    table = score_rows(model, work.detector, lease.rows, on_block, work.decision)
    return commit_shard(lease.path, table, work.run_hash, lease.rows.first)


class Engine(Protocol):
    """Something that does leases."""

    @property
    def evaluations(self) -> int:
        """UNet sample evaluations so far, padding left out."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of an evaluation, halved if memory ran out."""
        ...

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        """Do leases until none is left; no process is left behind, whatever is raised.

        ``show`` is called about every second with the number of rows that are done of open leases;
        it may raise, to interrupt the scan.
        """
        ...


class InProcess:
    """This process, with the model that it has."""

    def __init__(self, model: Denoiser, work: Work) -> None:
        self._model, self._work, self._before = model, work, model.engine.evaluations

    @property
    def evaluations(self) -> int:
        return self._model.engine.evaluations - self._before

    @property
    def batch_size(self) -> int:
        return self._model.batch_size

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        while (lease := ledger.take()) is not None:
            ledger.committed(lease, do_lease(self._model, self._work, lease, show))
