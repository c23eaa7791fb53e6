"""Several files as one input: rows in order, columns cast to common types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import Reader, Rows, rechunk


class Concatenated:
    """Readers of several files, read one after the other.

    A column whose type differs among files is cast to one that holds all values (int32 and int64
    to int64, numbers to float64, text to large text).

    Raises:
        UsageError: a file lacks a column, has one that others lack, or has one of an incompatible
            type; the message names the file and the column.
    """

    def __init__(self, readers: Sequence[Reader], paths: Sequence[Path]) -> None:
        self._readers, self._paths = readers, paths
        self.column = readers[0].column
        self.schema = readers[0].schema
        for reader, path in zip(readers[1:], paths[1:], strict=True):
            self.schema = self._unified(reader.schema, path)

    def _unified(self, schema: pa.Schema, path: Path) -> pa.Schema:
        if schema.equals(self.schema):
            return self.schema
        for name in {*schema.names} ^ {*self.schema.names}:
            lacking, having = (path, self._paths[0])[:: 1 if name not in schema.names else -1]
            raise UsageError(
                f"{lacking}: no column {name!r}, which {having} has; leave it out with --keep"
            )
        fields = []
        for known in self.schema:
            both = [pa.schema([known]), pa.schema([schema.field(known.name)])]
            try:
                fields.append(pa.unify_schemas(both, promote_options="permissive").field(0))
            except pa.ArrowException as error:
                raise UsageError(
                    f"{path}: column {known.name!r} is {both[1].field(0).type}, but"
                    f" {known.type} in earlier files; leave it out with --keep, or convert it"
                ) from error
        return pa.schema(fields)

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter)."""
        return rechunk(self._parts(size), size)

    def _parts(self, size: int) -> Iterator[Rows]:
        sizes = [path.stat().st_size for path in self._paths]
        total, before = max(1, sum(sizes)), 0
        for reader, path, bytes_ in zip(self._readers, self._paths, sizes, strict=True):
            for rows in reader.chunks(size):
                yield Rows(
                    first=0,
                    prompts=rows.prompts,
                    errors=rows.errors,
                    extra=self._cast(rows.extra, path),
                    fraction=(before + rows.fraction * bytes_) / total,
                )
            before += bytes_

    def _cast(self, table: pa.Table, path: Path) -> pa.Table:
        columns = []
        for field in self.schema:
            try:
                columns.append(table[field.name].cast(field.type))
            except pa.ArrowException as error:
                raise UsageError(
                    f"{path}: column {field.name!r} does not fit {field.type}, its type in other"
                    f" files ({error}); leave it out with --keep, or convert it"
                ) from error
        return pa.Table.from_arrays(columns, schema=self.schema)
