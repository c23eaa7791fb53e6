"""How far a scan is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from dori_fast.runs.workers.ledger import Ledger


@dataclass(frozen=True)
class Progress:
    """How far a scan is.

    Attributes:
        rows: rows of the input that are done, those of earlier calls included.
        quarantined: those of them that are quarantined, up to the last finished shard.
        scored: rows done by this call.
        seconds: time of this call.
        remaining: estimated seconds to the end, None as long as nothing has been scored.
    """

    rows: int
    quarantined: int
    scored: int
    seconds: float
    remaining: float | None

    @property
    def rate(self) -> float:
        """Rows per second of this call."""
        return self.scored / self.seconds if self.seconds > 0 else 0.0


class Meter:
    """Tells ``on_progress`` how far a ledger is, its open shards included."""

    def __init__(self, ledger: Ledger, on_progress: Callable[[Progress], None] | None) -> None:
        self._ledger, self._on_progress = ledger, on_progress
        self._began = perf_counter()

    @property
    def seconds(self) -> float:
        """Time since this was made."""
        return perf_counter() - self._began

    def show(self, open_rows: int) -> None:
        """``open_rows`` are those that are done of shards which are not committed."""
        if self._on_progress is None:
            return
        ledger, seconds = self._ledger, self.seconds
        scored = ledger.scored + open_rows
        # of the whole input, as far as its beginning tells
        per_row = ledger.fraction / max(1, ledger.rows)
        left = max(0.0, 1 - per_row * (ledger.passed + scored))
        share = per_row * scored
        self._on_progress(
            Progress(
                rows=ledger.counts.rows + open_rows,
                quarantined=ledger.counts.quarantined,
                scored=scored,
                seconds=seconds,
                remaining=seconds * left / share if share > 0 else None,
            )
        )
