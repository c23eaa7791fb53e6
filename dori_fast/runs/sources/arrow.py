"""Arrow stream files, as Hugging Face datasets are saved, one record batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import UsageError
from dori_fast.runs.sources.columnar import Columnar, first_line
from dori_fast.runs.sources.where import Selection

# size of the end mark of a stream
_END_BYTES = 8


class ArrowFile(Columnar):
    """A file of the Arrow stream format; unwanted columns are mapped but not read."""

    def __init__(
        self,
        path: Path,
        column: str | None,
        selection: Selection,
        partition: Mapping[str, pa.Scalar],
    ) -> None:
        try:
            with pa.memory_map(str(path)) as file:
                source = pa.ipc.open_stream(file).schema
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: not an Arrow stream ({first_line(error)})") from error
        super().__init__(path, source, column, selection, partition)
        for field in self.schema:
            if not _fits_parquet(field):
                raise UsageError(
                    f"{path}: column {field.name!r} is {field.type}, which results cannot hold;"
                    " leave it out with --keep"
                )

    def batches(self, size: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        """The file's record batches, cut to size."""
        with pa.memory_map(str(self._path)) as file:
            total, n = max(1, file.size() - _END_BYTES), 0
            reader = pa.ipc.open_stream(file)
            while True:
                before = file.tell()
                try:
                    batch = reader.read_next_batch()
                    batch.validate(full=True)
                except StopIteration:
                    if file.tell() == before:
                        raise UsageError(
                            f"{self._path}: cut off after {n} record batches, the end mark is"
                            " missing; get the file again"
                        ) from None
                    return
                except (OSError, pa.ArrowException) as error:
                    raise UsageError(
                        f"{self._path}: record batch {n} cannot be read ({first_line(error)});"
                        " get the file again"
                    ) from error
                n += 1
                if self.needed is not None:
                    batch = batch.select(self.needed)
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size), min(1.0, file.tell() / total)


def _fits_parquet(field: pa.Field) -> bool:
    if pa.types.is_dictionary(field.type) and pa.types.is_null(field.type.value_type):
        # ParquetWriter rejects it with the first row, not before
        return False
    try:
        with pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])):
            return True
    except pa.ArrowException:
        return False
