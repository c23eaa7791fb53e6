"""The engine: scores leases in this process and commits their shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.scoring.spent import Spent
from dori_fast.runs.store.shard import Footer, commit_shard
from dori_fast.runs.workers.ledger import Lease, Ledger

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser


class Engine:
    """A model and everything else that scoring a lease takes.

    Args:
        model: the run's model.
        detector: the run's detector.
        run_hash: hash of the run's identity, which every shard carries.
    """

    def __init__(self, model: Denoiser, detector: Detector, run_hash: str) -> None:
        self.model, self.detector, self.run_hash = model, detector, run_hash
        self._spent = Spent(model)

    @property
    def evaluations(self) -> int:
        """UNet sample evaluations so far, without padding."""
        return self._spent.evaluations

    @property
    def rows_computed(self) -> int:
        """UNet rows so far: samples, padding, and those of parts of the network."""
        return self._spent.rows_computed

    @property
    def batch_size(self) -> int:
        """Samples per evaluation; halved if memory ran out."""
        return self.model.batch_size

    def finish(self, ledger: Ledger, show: Callable[[int], None]) -> None:
        """Score leases until none is left.

        Args:
            ledger: source of the leases.
            show: called about every second with the number of rows done in open leases; may raise
                to interrupt the scan.
        """
        while (lease := ledger.take()) is not None:
            ledger.committed(lease, self.score(lease, show))

    def score(self, lease: Lease, on_block: Callable[[int], None]) -> Footer:
        """Score a lease and commit its shard.

        Scoring a lease twice is harmless: the same bytes get the same name. If memory runs out,
        the lease is scored again from its first row, so that all rows of a shard have the batch
        size of its footer.

        Args:
            lease: rows to score and the path of their shard.
            on_block: called about every second with the number of rows handled so far.

        Raises:
            StorageError: the disk refused; what was committed before is intact.
        """
        while True:
            size = self.batch_size
            table = score_rows(self.model, self.detector, lease.rows, on_block)
            if (smaller := self.batch_size) == size:
                break
            # prepared() may have raised it again; what the model keeps is kept by batch size
            self.model.batch_size = smaller
        return commit_shard(lease.path, table, self.run_hash, lease.rows.first, size)
