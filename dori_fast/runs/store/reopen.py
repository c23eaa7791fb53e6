"""Run directories of scans, localizations and attacks, read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.decisions import DECIDED, DecisionRecord, decided_rows, newest_decision
from dori_fast.runs.store.manifest import MANIFEST, Manifest
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.shard import check_shard, shard_columns

Kind = Literal["scan", "prune", "attack"]

# columns that only rows of one kind have
_TELLING: dict[str, Kind] = {
    "similarity_before": "attack",
    "refined": "prune",
    "pruned": "prune",
    "score": "scan",
}


@dataclass(frozen=True)
class StoredRun:
    """A run that was read back, finished or not; its shards have been checked.

    Attributes:
        root: the run directory.
        kind: the method that was run.
        record: its run.json.
        shards: the committed shards, in row order.
        columns: names of the rows' columns, in order; those of the newest decision come last.
        decision: folder and record of the newest decision, or None.
    """

    root: Path
    kind: Kind
    record: RunRecord
    shards: tuple[Path, ...]
    columns: tuple[str, ...]
    decision: tuple[Path, DecisionRecord] | None = None

    def summary(self) -> dict[str, Any]:
        """The record as plain JSON, and under ``decision`` the newest decision or None."""
        decision = None if self.decision is None else self.decision[1].model_dump(mode="json")
        return {**self.record.model_dump(mode="json"), "decision": decision}

    @property
    def merkle_root(self) -> str | None:
        """Root in the manifest; None if the run is not finished, or older than manifests are."""
        there = (self.root / MANIFEST).is_file()
        return Manifest.read(self.root).merkle_root if there else None

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows in order, one shard in memory; all columns unless some are named."""
        yield from merged_tables(self.shards, self.decision, columns)


def merged_tables(
    shards: Sequence[Path],
    decision: tuple[Path, DecisionRecord] | None,
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Shards in order with the columns of a decision; all columns unless some are named."""
    if decision is None:
        for shard in shards:
            yield pq.read_table(shard, columns=list(columns) or None, partitioning=None)
        return
    names = [name for name in columns if name not in DECIDED]
    for shard, decided in zip(shards, decided_rows(decision[0]), strict=True):
        # of an early calibrated run, the shards hold a decision of their own
        table = pq.read_table(shard, columns=names or None, partitioning=None)
        table = table.drop_columns([name for name in DECIDED if name in table.column_names])
        for name in DECIDED:
            table = table.append_column(name, decided[name])
        yield table.select(list(columns)) if columns else table


def open_run(root: str | Path) -> StoredRun:
    """Read a run directory back.

    Raises:
        UsageError: no run directory, or a run without rows.
        IntegrityError: the record or a shard is damaged or belongs elsewhere.
    """
    root = Path(root)
    if not (root / "run.json").is_file():
        raise UsageError(
            f"{root}: no run directory (it has no run.json); give the --out of dori-fast scan,"
            " prune or attack"
        )
    record = RunRecord.read(root / "run.json")
    if "fine_tuning" in record.identity:
        raise UsageError(f"{root}: fine-tuning has no rows; its figures are in scalars.jsonl")
    if misfit := record.misfit:
        raise IntegrityError(f"{root / 'run.json'}: {misfit}; restore it from a copy")
    shards = tuple(shard_names.paths(root))
    if not shards:
        raise UsageError(f"{root}: the run has no rows yet; run its command again to continue it")
    for shard in shards:
        if shard_names.number(shard) is None:
            raise IntegrityError(f"{shard}: not the name of a shard; move it away")
    schema = shard_columns(shards[0])
    kind = next((kind for name, kind in _TELLING.items() if name in schema.names), None)
    if kind is None:
        raise IntegrityError(f"{shards[0]}: not the rows of a scan, localization or attack")
    for shard in shards:
        first = (shard_names.number(shard) or 0) * int(record.identity["shard_size"])
        check_shard(shard, record.run_hash, first, schema)
    decision = newest_decision(root)
    names = [name for name in schema.names if decision is None or name not in DECIDED]
    columns = (*names, *(DECIDED if decision else ()))
    return StoredRun(root, kind, record, shards, columns, decision)
