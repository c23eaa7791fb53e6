"""Parquet prompts, one row group at a time; passed-through columns keep their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from dori_fast.errors import UsageError
from dori_fast.runs.sources.columnar import Columnar, first_line
from dori_fast.runs.sources.where import Selection


class ParquetFile(Columnar):
    """A parquet file; skips row groups that by their statistics hold no wanted row."""

    def __init__(
        self,
        path: Path,
        column: str | None,
        selection: Selection,
        partition: Mapping[str, pa.Scalar],
    ) -> None:
        with _opened(path) as file:
            super().__init__(path, file.schema_arrow, column, selection, partition)

    def batches(self, size: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Batches of the row groups that may hold wanted rows."""
        with _opened(self._path) as file:
            total, before = max(1, file.metadata.num_rows), 0
            wanted = self._wanted(file)
            for group in range(file.num_row_groups):
                end = before + file.metadata.row_group(group).num_rows
                if group in wanted:
                    for batch in self._group(file, group, size):
                        before += len(batch)
                        yield batch, before / total
                before = end

    def _group(self, file: pq.ParquetFile, group: int, size: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from file.iter_batches(batch_size=size, row_groups=[group], columns=self.needed)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"{self._path}: row group {group} of {file.num_row_groups} cannot be read"
                f" ({first_line(error)}); get the file again"
            ) from error

    def _wanted(self, file: pq.ParquetFile) -> set[int]:
        every = set(range(file.num_row_groups))
        if self.by_statistics is None:
            return every
        schema, folder = file.schema_arrow, pc.scalar(True)
        for name, value in self._partition.items():
            schema = schema.append(pa.field(name, value.type))
            if value.is_valid:
                folder = folder & (pc.field(name) == value)
        fragment = ds.ParquetFileFormat().make_fragment(
            str(self._path), LocalFileSystem(), partition_expression=folder
        )
        try:
            return {group.id for group in fragment.subset(self.by_statistics, schema).row_groups}
        except pa.ArrowException:
            # some statistics cannot be cast; the rows themselves decide
            return every


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        # UnicodeDecodeError comes from the name of a column
        raise UsageError(f"{path}: not a readable parquet file ({first_line(error)})") from error
