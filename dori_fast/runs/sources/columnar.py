"""Files of typed columns in batches: the prompt column is checked, the others pass through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import (
    PROMPT_BYTES,
    Rows,
    decode_prompt,
    find_column,
    missing_column,
    passed_names,
    rechunk,
    storable,
)
from dori_fast.runs.sources.where import Selection

_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_BYTES = (pa.binary(), pa.large_binary())
_NULL = "null: the row has no prompt"


class Columnar:
    """A :class:`dori_fast.runs.sources.rows.Reader` of one file; formats define ``batches``.

    Bytes and dictionaries of text are read as text. Only needed columns are read; unwanted rows
    are dropped first of all.

    Args:
        path: the file.
        source: schema of the file.
        column: the prompt column, None for the first usual name.
        selection: the wanted rows and columns.
        partition: value of each column that the folder's name adds.

    Attributes:
        needed: columns that ``batches`` must read, None for all.
        where: condition on the wanted rows, None if there is none.
        by_statistics: the part of ``where`` that minima and maxima decide.
    """

    def __init__(
        self,
        path: Path,
        source: pa.Schema,
        column: str | None,
        selection: Selection,
        partition: Mapping[str, pa.Scalar],
    ) -> None:
        self._path, self._partition = path, partition
        try:
            source.names  # noqa: B018
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: the name of a column is not UTF-8 ({error})") from error
        found = _prompt_column(path, source, column)
        self.column: str | None = found
        for name in partition:
            if name in source.names:
                raise UsageError(f"{path}: column {name!r} is in the file and in its folder's name")
        whole = source.remove_metadata()
        for name, value in partition.items():
            whole = whole.append(pa.field(name, value.type))
        rest = whole.remove(whole.get_field_index(found))
        if selection:
            selection.check(whole.names, path)
        types = dict(zip(whole.names, whole.types, strict=True))
        self.where = selection.expression(types, path)
        self.by_statistics = selection.decided_by_statistics(types).expression(types, path)
        self._kept = set(selection.kept(rest.names))
        extra = [field for field in rest if field.name in self._kept]
        names = passed_names([field.name for field in extra])
        self.schema = pa.schema([f.with_name(n) for f, n in zip(extra, names, strict=True)])
        needed = {found, *self._kept, *(condition.column for condition in selection.where)}
        # None instead of all names: two columns may have the same one
        self.needed = None if needed >= set(source.names) else sorted(needed - set(partition))

    def batches(self, size: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Batches of at most ``size`` rows, each with the share of the file read so far."""
        raise NotImplementedError

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter)."""
        return rechunk(self._parts(size), size)

    def _parts(self, size: int) -> Iterator[Rows]:
        for batch, fraction in self.batches(size):
            table = pa.Table.from_batches([batch])
            for name, value in self._partition.items():
                column = pa.repeat(value, len(table))
                table = table.append_column(pa.field(name, value.type), column)
            yield self._to_rows(self._filtered(table), fraction)

    def _filtered(self, table: pa.Table) -> pa.Table:
        """The wanted rows; UsageError for broken text and for types that cannot be filtered."""
        if self.where is None:
            return table
        try:
            return table.filter(self.where)
        except pa.ArrowException as error:
            raise UsageError(
                f"{self._path}: these columns cannot be filtered ({first_line(error)});"
                " read it without conditions, or leave the column out with --keep"
            ) from error

    def _to_rows(self, table: pa.Table, fraction: float) -> Rows:
        prompt_at = table.schema.get_field_index(self.column)
        prompts, errors = _checked(_undecoded(table.column(prompt_at)))
        extra = [
            self._as_stored(name, column)
            for i, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
            if i != prompt_at and name in self._kept
        ]
        return Rows(
            first=0,
            prompts=prompts,
            errors=errors,
            extra=pa.Table.from_arrays(extra, schema=self.schema),
            fraction=fraction,
        )

    def _as_stored(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        try:
            return _as_stored(column)
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{self._path}: column {name!r} has broken values ({first_line(error)});"
                " leave it out with --keep"
            ) from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _prompt_column(path: Path, source: pa.Schema, column: str | None) -> str:
    found = find_column(source.names, column)
    if found is None:
        missing = f"no column {column!r}" if column else "no prompt column"
        raise missing_column(path, missing, source.names)
    if source.names.count(found) > 1:
        raise UsageError(f"{path}: column {found!r} occurs twice; rename one of them")
    kind = source.field(found).type
    if _plain(kind) not in (*_TEXT, *_BYTES, pa.null()):
        raise UsageError(f"{path}: column {found!r} is {kind}, not text; name another one")
    return found


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _undecoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The prompts' bytes: text in a file need not be valid UTF-8."""
    kind = _plain(column.type)
    if column.type != kind:
        column = column.cast(kind)
    if kind == pa.null():
        return column.cast(pa.large_binary())
    # a view type has no direct cast to bytes
    wide = column.cast(pa.large_string()) if kind == pa.string_view() else column
    return wide.cast(pa.large_binary())


def _checked(column: pa.ChunkedArray) -> tuple[list[str | None], list[str | None]]:
    """Prompts, and the errors of those that cannot be scored."""
    if (pc.max(pc.binary_length(column)).as_py() or 0) <= PROMPT_BYTES:
        with suppress(pa.ArrowInvalid):
            # decoding all at once is several times as fast as one by one
            prompts = column.cast(pa.large_string()).to_pylist()
            return prompts, [_NULL if prompt is None else None for prompt in prompts]
    pairs = [(None, _NULL) if raw is None else decode_prompt(raw) for raw in column.to_pylist()]
    return [prompt for prompt, _ in pairs], [error for _, error in pairs]


def _as_stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a form that results can hold: invalid UTF-8 is escaped.

    Raises:
        pa.ArrowInvalid: text within lists and the like is not UTF-8.
    """
    kind = column.type
    if kind in _TEXT:
        return _valid_text(column)
    if pa.types.is_dictionary(kind):
        return pa.chunked_array([_nulls_outside(chunk) for chunk in column.chunks], kind)
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        column.validate(full=True)
    return column


def _nulls_outside(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The array with nulls outside the dictionary; parquet holds none inside."""
    if array.dictionary.null_count == 0:
        return array
    return array.dictionary_decode().dictionary_encode().cast(array.type)


def _valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        text = [None if r is None else storable(r.decode("utf-8", "surrogateescape")) for r in raw]
        return pa.chunked_array([pa.array(text, column.type)])
    return column
