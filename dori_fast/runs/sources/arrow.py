"""Arrow files, such as Hugging Face datasets are saved as, one record batch at a time."""

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
# first bytes of the file format, which polars and Feather write
_FILE_MAGIC = b"ARROW1"


class ArrowFile(Columnar):
    """A file of Arrow's stream or file format; unwanted columns are mapped but not read."""

    def __init__(
        self,
        path: Path,
        column: str | None,
        selection: Selection,
        partition: Mapping[str, pa.Scalar],
    ) -> None:
        try:
            with pa.memory_map(str(path)) as file:
                self._indexed = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
                file.seek(0)
                opened = pa.ipc.open_file if self._indexed else pa.ipc.open_stream
                source = opened(file).schema
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"{path}: not an Arrow stream ({first_line(error)}); get the file again"
            ) from error
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
            for batch, fraction in (
                self._indexed_ones(file) if self._indexed else self._stream(file)
            ):
                if self.needed is not None:
                    batch = batch.select(self.needed)
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size), fraction

    def _stream(self, file: pa.MemoryMappedFile) -> Iterator[tuple[pa.RecordBatch, float]]:
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
                raise self._broken(n, error) from error
            n += 1
            yield batch, min(1.0, file.tell() / total)

    def _indexed_ones(self, file: pa.MemoryMappedFile) -> Iterator[tuple[pa.RecordBatch, float]]:
        reader = pa.ipc.open_file(file)
        for n in range(reader.num_record_batches):
            try:
                batch = reader.get_batch(n)
                batch.validate(full=True)
            except (OSError, pa.ArrowException) as error:
                raise self._broken(n, error) from error
            yield batch, (n + 1) / reader.num_record_batches

    def _broken(self, n: int, error: Exception) -> UsageError:
        return UsageError(
            f"{self._path}: record batch {n} cannot be read ({first_line(error)});"
            " get the file again"
        )


def _fits_parquet(field: pa.Field) -> bool:
    if pa.types.is_dictionary(field.type) and pa.types.is_null(field.type.value_type):
        # ParquetWriter rejects it with the first row, not before
        return False
    try:
        with pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])):
            return True
    except pa.ArrowException:
        return False
