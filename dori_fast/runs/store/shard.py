"""One shard: a parquet file whose footer names its run and proves that it is whole."""

from __future__ import annotations

import hashlib
import io
import operator
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError
from dori_fast.runs.store.durable import write_durably

SAME_COMMAND = "; run the same command again"
"""Remedy at the end of an error of :func:`shard_columns`."""
_FOOTER_KEY = b"dori_fast"


class Footer(BaseModel):
    """A shard's footer: its run, its rows of the input, and a digest of its data.

    ``data_sha256`` covers the first ``data_bytes`` bytes of the file, everything but the footer.
    ``batch_size`` is the UNet samples per evaluation of all its rows, on which their last bits
    depend; None if there were several, or if an older version wrote it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_hash: str
    first_row: int
    rows: int
    quarantined: int
    data_bytes: int
    data_sha256: str
    batch_size: Annotated[int | None, Field(ge=1, exclude_if=operator.not_)] = None


def commit_shard(
    path: Path, table: pa.Table, run_hash: str, first_row: int, batch_size: int | None = None
) -> Footer:
    """Write rows as a shard, read it back, and give it its final name.

    Raises:
        StorageError: the disk refused the write.
        IntegrityError: the disk returned other data than was written.
    """

    def write(temporary: Path) -> None:
        _write(temporary, table, run_hash, first_row, batch_size)
        check_shard(temporary, run_hash, first_row, as_stored(table.schema))

    write_durably(path, write)
    return read_footer(path)


def as_stored(schema: pa.Schema) -> pa.Schema:
    """The schema that parquet returns for this one; it lacks some Arrow types."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    return pq.read_schema(io.BytesIO(sink.getvalue()))


def check_shard(path: Path, run_hash: str, first_row: int, schema: pa.Schema) -> Footer:
    """Check that a shard is whole, has this stored schema and belongs to these rows of this run.

    Raises:
        IntegrityError: it is damaged, or belongs to another run or to other rows.
    """
    footer = read_footer(path)
    if footer.run_hash != run_hash:
        raise IntegrityError(f"{path}: belongs to another run ({footer.run_hash[:12]})")
    if footer.first_row != first_row:
        raise IntegrityError(f"{path}: holds rows from {footer.first_row}, not {first_row}")
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not table.schema.equals(schema):
        raise IntegrityError(f"{path}: its columns are not those of this run")
    if _digest(path, footer.data_bytes) != footer.data_sha256:
        raise IntegrityError(f"{path}: its data does not match its checksum")
    expected = np.arange(first_row, first_row + footer.rows)
    if not np.array_equal(table["row_id"].to_numpy(), expected):
        raise IntegrityError(f"{path}: its rows are not the {footer.rows} that its footer names")
    return footer


def read_footer(path: Path) -> Footer:
    """The footer of a shard, unverified; IntegrityError if it cannot be read."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return Footer.model_validate_json(metadata[_FOOTER_KEY])
    except (OSError, pa.ArrowException) as error:
        reason = read_stand_in(path) or _first_line(error)
        raise IntegrityError(f"{path}: no readable footer ({reason})") from error
    except (KeyError, ValidationError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: no shard of dori_fast") from error


def shard_columns(path: Path) -> pa.Schema:
    """The columns of a shard as stored; IntegrityError if they cannot be read."""
    try:
        schema = pq.read_schema(path)
        known = "row_id" in schema.names
    # a flipped bit may make a column name invalid UTF-8
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: no readable shard{SAME_COMMAND}") from error
    if not known:
        raise IntegrityError(f"{path}: has no column row_id{SAME_COMMAND}")
    return schema


class _Hashing(io.RawIOBase):
    """A file for writing that updates a sha256 of its data."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _write(
    path: Path, table: pa.Table, run_hash: str, first_row: int, batch_size: int | None
) -> None:
    quarantined = pc.sum(pc.equal(table["status"], "quarantined")).as_py() or 0
    with path.open("wb") as file:
        sink = _Hashing(file)
        with pq.ParquetWriter(
            sink, table.schema, compression="zstd", write_statistics=False
        ) as writer:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            footer = Footer(
                run_hash=run_hash,
                first_row=first_row,
                rows=table.num_rows,
                quarantined=quarantined,
                data_bytes=sink.size,
                data_sha256=sink.digest.hexdigest(),
                batch_size=batch_size,
            )
            writer.add_key_value_metadata({_FOOTER_KEY.decode(): footer.model_dump_json()})


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(size))
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
