"""What a scan leaves behind, read back from the run directory without loading it whole."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from dori_fast.runs.store.record import Counts

if TYPE_CHECKING:
    from dori_fast.runs.calibrate import Decision

_TOP_COLUMNS = ("row_id", "prompt", "status", "score", "n_tokens", "truncated")


@dataclass(frozen=True)
class ScanResult:
    """A finished scan.

    Attributes:
        out: the run directory.
        shards: its shards, in row order.
        run_hash: what the rows depend on, as in run.json and in every shard.
        counts: rows, ok and quarantined, of the whole input.
        scored: rows computed by this call; the others were there already.
        seconds: time of this call spent on them, reading and writing included.
        state: ``"done"``, or ``"over_budget"`` if more rows were quarantined than allowed.
        decision: how rows were flagged, in a calibrated scan.
        evaluations: UNet sample evaluations of this call, padding left out.
        merkle_root: over run.json and the shards, as in manifest.json; note it elsewhere, and
            ``dori-fast verify --root`` proves later that nothing was edited.
    """

    out: Path
    shards: list[Path]
    run_hash: str
    counts: Counts
    scored: int
    seconds: float
    state: Literal["done", "over_budget"]
    decision: Decision | None = None
    evaluations: int = 0
    merkle_root: str = ""

    @property
    def rate(self) -> float:
        """Rows per second of this call."""
        return self.scored / self.seconds if self.seconds > 0 else 0.0

    def rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """All rows in order as dictionaries (of the named columns), one shard in memory."""
        for shard in self.shards:
            table = pq.read_table(shard, columns=list(columns) or None, partitioning=None)
            yield from table.to_pylist()

    def top(self, n: int = 20) -> list[dict[str, Any]]:
        """The ``n`` highest-scored rows, highest first; among equals the earlier row first."""
        columns = (*_TOP_COLUMNS, *(("p_value", "flagged") if self.decision else ()))
        scored = (row for row in self.rows(*columns) if row["status"] == "ok")
        return heapq.nsmallest(n, scored, key=lambda row: (-row["score"], row["row_id"]))
