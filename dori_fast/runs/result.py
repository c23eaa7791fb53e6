"""The result of a scan: rows are read from the run directory, one shard in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dori_fast.runs.store.decisions import DECIDED, DecisionRecord, newest_decision
from dori_fast.runs.store.record import Counts
from dori_fast.runs.store.reopen import merged_tables

_TOP_COLUMNS = ("row_id", "prompt", "status", "score", "n_tokens", "truncated")


@dataclass(frozen=True)
class ScanResult:
    """A finished scan.

    Attributes:
        out: run directory.
        shards: paths of the shards, in row order.
        run_hash: hash of everything that the rows depend on, as in run.json and in every shard.
        counts: number of rows, ok and quarantined, of the whole input.
        scored: rows computed by this call; the others were there already.
        seconds: duration of this call, reading and writing included.
        state: ``"done"``, or ``"over_budget"`` if more rows were quarantined than allowed.
        decision: the decision of a calibrated scan: how many rows are flagged, and by which rule.
        evaluations: UNet sample evaluations of this call, without padding.
        rows_computed: UNet rows that this call computed: samples, padding, parts of the network.
        merkle_root: root over run.json and the shards, as in manifest.json. Note it elsewhere:
            ``dori-fast verify --root`` then proves that nothing was edited.
    """

    out: Path
    shards: list[Path]
    run_hash: str
    counts: Counts
    scored: int
    seconds: float
    state: Literal["done", "over_budget"]
    decision: DecisionRecord | None = None
    evaluations: int = 0
    rows_computed: int = 0
    merkle_root: str = ""

    @property
    def rate(self) -> float:
        """Rows per second of this call."""
        return self.scored / self.seconds if self.seconds > 0 else 0.0

    def rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """All rows in order as dictionaries; all columns unless some are named.

        ``p_value`` and ``flagged`` are those of the newest decision on the run, if there is one.
        """
        for table in merged_tables(self.shards, newest_decision(self.out), columns):
            yield from table.to_pylist()

    def top(self, n: int = 20) -> list[dict[str, Any]]:
        """The ``n`` highest-scored rows, highest first; of equal scores the earlier row first."""
        columns = (*_TOP_COLUMNS, *(DECIDED if newest_decision(self.out) else ()))
        scored = (row for row in self.rows(*columns) if row["status"] == "ok")
        return heapq.nsmallest(n, scored, key=lambda row: (-row["score"], row["row_id"]))
