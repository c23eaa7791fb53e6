"""A run as pages and exports read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq


class Run(Protocol):
    """A run with rows, such as :class:`dori_fast.runs.store.reopen.StoredRun`."""

    @property
    def root(self) -> Path:
        """The run directory."""
        ...

    def summary(self) -> dict[str, Any]:
        """Content of run.json."""
        ...

    @property
    def merkle_root(self) -> str | None:
        """Merkle root of a finished run's manifest, hexadecimal."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the rows' columns."""
        ...

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows in order, shard by shard, with these columns; default: all columns."""
        ...


def rows_of(run: Run, *columns: str) -> list[dict[str, Any]]:
    """All rows in one list, for runs with few rows."""
    return [row for part in run.tables(*columns) for row in part.to_pylist()]


def rows_in(root: Path) -> list[dict[str, Any]]:
    """All rows of a run directory's shards, in order; none if there is no shard."""
    tables = [
        pq.read_table(path, partitioning=None) for path in (root / "shards").glob("*.parquet")
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(rows, key=lambda row: row["row_id"])
