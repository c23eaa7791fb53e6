"""Run directories read back: of a scan, a localization or an attack, finished or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast._text import by_number
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.manifest import MANIFEST, Manifest
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.shard import check_shard, shard_columns

Kind = Literal["scan", "prune", "attack"]

# a column that only rows of this kind have
_TELLING: dict[str, Kind] = {
    "similarity_before": "attack",
    "refined": "prune",
    "pruned": "prune",
    "score": "scan",
}


@dataclass(frozen=True)
class StoredRun:
    """A run that was read back; its shards have been checked.

    Attributes:
        root: the run directory.
        kind: what was run.
        record: its run.json.
        shards: the committed ones, in row order.
        columns: of the rows, in order.
    """

    root: Path
    kind: Kind
    record: RunRecord
    shards: tuple[Path, ...]
    columns: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return self.record.model_dump(mode="json")

    @property
    def merkle_root(self) -> str | None:
        """Of the manifest; None if the run is not finished, or was before there were manifests."""
        there = (self.root / MANIFEST).is_file()
        return Manifest.read(self.root).merkle_root if there else None

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows in order, of the named columns or of all, one shard in memory."""
        for shard in self.shards:
            yield pq.read_table(shard, columns=list(columns) or None, partitioning=None)


def open_run(root: str | Path) -> StoredRun:
    """Read a run directory back.

    Raises:
        UsageError: no run directory, or one without rows.
        IntegrityError: the record or a shard is damaged, or does not belong there.
    """
    root = Path(root)
    if not (root / "run.json").is_file():
        raise UsageError(
            f"{root}: no run directory (it has no run.json) — give the --out of dori-fast scan,"
            " prune or attack"
        )
    record = RunRecord.read(root / "run.json")
    if "fine_tuning" in record.identity:
        raise UsageError(f"{root}: fine-tuning has no rows — its figures are in scalars.jsonl")
    if misfit := record.misfit:
        raise IntegrityError(f"{root / 'run.json'}: {misfit} — restore it from a copy")
    found = (root / "shards").glob("part-*.parquet")
    shards = tuple(sorted(found, key=lambda shard: by_number(shard.name)))
    if not shards:
        raise UsageError(f"{root}: the run has no rows yet — run its command again to continue it")
    schema = shard_columns(shards[0])
    kind = next((kind for name, kind in _TELLING.items() if name in schema.names), None)
    if kind is None:
        raise IntegrityError(f"{shards[0]}: not the rows of a scan, localization or attack")
    for shard in shards:
        first = _index(shard) * int(record.identity["shard_size"])
        check_shard(shard, record.run_hash, first, schema)
    return StoredRun(root, kind, record, shards, tuple(schema.names))


def _index(shard: Path) -> int:
    number = shard.stem.removeprefix("part-")
    if not (number.isascii() and number.isdecimal()):
        raise IntegrityError(f"{shard}: not the name of a shard — move it away")
    return int(number)
