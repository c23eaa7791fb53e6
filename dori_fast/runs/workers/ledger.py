"""The ledger of a scan: which shards are committed, leased or still to be handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dori_fast.runs.sources.rows import Rows
from dori_fast.runs.store.directory import RunDirectory
from dori_fast.runs.store.record import Counts
from dori_fast.runs.store.shard import Footer


@dataclass(frozen=True)
class Lease:
    """One shard to be scored by one worker: its index in the run, its final path, and its rows.

    The rows of an index depend on the input and the shard size alone.
    """

    index: int
    path: Path
    rows: Rows


class Ledger:
    """Hands out the shards of a run that are not committed, in the order of the input.

    One process has it. A lease that is lost with its worker is given back, and handed out before
    any other.

    Args:
        run: run directory, entered.
        chunks: all rows of the input, one shard at a time.

    Attributes:
        counts: rows of this job by outcome, those of earlier calls included.
        scored: rows among them that were scored by this call.
        shards: indices of this job's shards that are committed or leased.
        passed: rows of the input that need no scoring: other jobs', or committed earlier.
        fraction: share of the input up to the end of the last lease, 0..1.
        rows: rows of the input up to there.
    """

    def __init__(self, run: RunDirectory, chunks: Iterable[Rows]) -> None:
        self.counts, self.scored, self.passed = Counts(), 0, 0
        self.shards: list[int] = []
        self.fraction, self.rows = 0.0, 0
        self._run, self._chunks = run, enumerate(chunks)
        self._returned: deque[Lease] = deque()
        self._open: set[int] = set()
        self._exhausted = False

    @property
    def open(self) -> bool:
        """Whether a shard was handed out and is not committed, given back or not."""
        return bool(self._open)

    @property
    def done(self) -> bool:
        """Whether the input is at its end and every shard of this job is committed."""
        return self._exhausted and not self._open

    def take(self) -> Lease | None:
        """A shard that no worker has; None if all are committed or leased. Waits for the input."""
        if self._returned:
            return self._returned.popleft()
        for index, rows in self._chunks:
            self.fraction, self.rows = rows.fraction, rows.first + len(rows)
            if not self._run.job.has(index):
                self.passed += len(rows)
                continue
            self.shards.append(index)
            footer = self._run.committed.get(index)
            if footer is not None and footer.rows != len(rows):
                reason = f"shard {index} has {footer.rows} rows, not {len(rows)}"
                self._run.discard(index, reason)
            elif footer is not None:
                self.passed += len(rows)
                self.counts.add(footer.rows, footer.quarantined)
                continue
            self._open.add(index)
            return Lease(index, self._run.path(index), rows)
        self._exhausted = True
        return None

    def give_back(self, lease: Lease) -> None:
        """Take back a lease whose worker is gone, and remove its half-written file."""
        self._run.drop_unfinished(lease.index)
        self._returned.append(lease)

    def committed(self, lease: Lease, footer: Footer) -> None:
        """Record that a lease's shard is committed."""
        self._open.discard(lease.index)
        self._run.committed[lease.index] = footer
        self.scored += footer.rows
        self.counts.add(footer.rows, footer.quarantined)
        self._run.sign(self.fraction)

    def settle(self) -> None:
        """Count the shards anew, also one whose commit was not recorded before a signal came."""
        self.counts = self._run.counted(self.shards)
