"""Parquet prompts, one row group at a time; passed-through columns keep their types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import UsageError
from dori_fast.scan.rows import Rows, decode_prompt, find_column, passed_names, storable

_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_BYTES = (pa.binary(), pa.large_binary())


class ParquetFile:
    """A parquet file with a text column; bytes and dictionaries of text are read as text."""

    def __init__(self, path: Path, column: str | None) -> None:
        self._path = path
        with _opened(path) as file:
            source = file.schema_arrow
            self._rows = file.metadata.num_rows
        found = find_column(source.names, column)
        if found is None:
            wanted = f"no column {column!r}" if column else "no prompt column"
            shown = ", ".join(repr(name) for name in source.names[:20])
            raise UsageError(f"{path}: {wanted} among {shown} — name it with --column")
        if source.names.count(found) > 1:
            raise UsageError(f"{path}: column {found!r} occurs twice — rename one of them")
        kind = source.field(found).type
        if _plain(kind) not in (*_TEXT, *_BYTES, pa.null()):
            raise UsageError(f"{path}: column {found!r} is {kind}, not text — name another one")
        self.column: str | None = found
        self._prompt_at = source.get_field_index(found)
        extra = source.remove(self._prompt_at).remove_metadata()
        names = passed_names(extra.names)
        self.schema = pa.schema([f.with_name(n) for f, n in zip(extra, names, strict=True)])

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter)."""
        waiting: list[pa.RecordBatch] = []
        first = 0
        for batch in self._batches(size):
            waiting.append(batch)
            while sum(part.num_rows for part in waiting) >= size:
                table = pa.Table.from_batches(waiting)
                yield self._to_rows(table.slice(0, size), first)
                first += size
                waiting = table.slice(size).to_batches()
        if sum(part.num_rows for part in waiting):
            yield self._to_rows(pa.Table.from_batches(waiting), first)

    def _batches(self, size: int) -> Iterator[pa.RecordBatch]:
        with _opened(self._path) as file:
            for group in range(file.num_row_groups):
                try:
                    yield from file.iter_batches(batch_size=size, row_groups=[group])
                except (OSError, pa.ArrowException) as error:
                    raise UsageError(
                        f"{self._path}: row group {group} of {file.num_row_groups} cannot be read"
                        f" ({_first_line(error)}) — get the file again"
                    ) from error

    def _to_rows(self, table: pa.Table, first: int) -> Rows:
        checked = [_check(raw) for raw in _raw_prompts(table.column(self._prompt_at))]
        extra = table.remove_column(self._prompt_at)
        columns = [_valid_text(column) for column in extra.columns]
        return Rows(
            first=first,
            prompts=[prompt for prompt, _ in checked],
            errors=[error for _, error in checked],
            extra=pa.Table.from_arrays(columns, schema=self.schema),
            fraction=min(1.0, (first + table.num_rows) / self._rows),
        )


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: not a readable parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _raw_prompts(column: pa.ChunkedArray) -> list[bytes | None]:
    """The undecoded prompts: parquet's text is only claimed to be UTF-8."""
    kind = _plain(column.type)
    if column.type != kind:
        column = column.cast(kind)
    if kind == pa.null():
        return [None] * len(column)
    # a view type has no cast to bytes of its own
    wide = column.cast(pa.large_string()) if kind == pa.string_view() else column
    return wide.cast(pa.large_binary()).to_pylist()


def _check(raw: bytes | None) -> tuple[str | None, str | None]:
    return (None, "null: the row has no prompt") if raw is None else decode_prompt(raw)


def _valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column itself, or with invalid UTF-8 spelled out, so that results can be read back."""
    if column.type not in _TEXT:
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        text = [None if r is None else storable(r.decode("utf-8", "surrogateescape")) for r in raw]
        return pa.chunked_array([pa.array(text, column.type)])
    return column
