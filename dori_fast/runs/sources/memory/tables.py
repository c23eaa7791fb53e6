"""Tables of other libraries as Arrow record batches of one size, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from dori_fast.errors import DoriError, UsageError
from dori_fast.runs.sources.columnar import first_line

# values of a mapping that are no column; the order of a set differs between processes
_NO_COLUMNS = (str, bytes, Mapping, set, frozenset)
# fixed, so that equal tables give equal files however they are cut
_ROWS = 1024

T = TypeVar("T")
Batches = tuple[pa.Schema, Iterator[pa.Table]]


def table_batches(prompts: Any) -> Batches | None:
    """The schema and the rows of a table, 1,024 at a time; None if this is no table.

    Tables are those of pyarrow, pandas, polars and datasets, whatever exports an Arrow stream, and
    mappings or frames from a column's name to its values.

    Raises:
        UsageError: the table's columns have no Arrow type or not one length.
    """
    for recognized, convert in _KINDS:
        if recognized(prompts):
            try:
                schema, tables = convert(prompts)
            except UsageError:
                raise
            # libraries raise anything at columns that they cannot convert
            except Exception as error:
                reason = ", ".join(map(str, error.args)).split("\n", 1)[0]
                raise UsageError(
                    f"a {type(prompts).__name__} that is no table of columns ({reason});"
                    " correct that column or leave it out, or pass a list of str"
                ) from error
            return schema.remove_metadata(), _recut(pulled(tables, type(prompts).__name__))
    return None


def pulled(values: Iterator[T], kind: str) -> Iterator[T]:
    """The values of an iterator that is not ours; what it raises is a UsageError.

    An OSError in it would otherwise look like one of the disk that the values are written to.
    """
    count = 0
    try:
        for value in values:
            yield value
            count += 1
    except DoriError:
        raise
    except Exception as error:
        raise UsageError(
            f"prompts: the {kind} raised {type(error).__name__} ({first_line(error)}) after"
            f" {count:,} parts; correct it, or pass a list of str"
        ) from error


def _recut(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    count = 0
    for table in tables:
        for batch in table.replace_schema_metadata(None).to_batches(max_chunksize=_ROWS):
            waiting.append(batch)
            count += len(batch)
            if count >= _ROWS:
                whole = pa.Table.from_batches(waiting)
                yield whole.slice(0, _ROWS).combine_chunks()
                waiting, count = whole.slice(_ROWS).to_batches(), count - _ROWS
    if count:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _of_arrow(table: Any) -> Batches:
    return table.schema, iter([table])


def _of_batch(batch: Any) -> Batches:
    return batch.schema, iter([pa.Table.from_batches([batch])])


def _of_struct(array: Any) -> Batches:
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    empty = pa.RecordBatch.from_struct_array(pa.array([], array.type))
    batches = [pa.RecordBatch.from_struct_array(chunk) for chunk in chunks]
    return empty.schema, iter([pa.Table.from_batches(batches, empty.schema)])


def _of_pandas(frame: Any) -> Batches:
    return _of_arrow(pa.Table.from_pandas(frame, preserve_index=False))


def _of_datasets(dataset: Any) -> Batches:
    """The rows that the dataset shows, in its order, whatever its files hold."""
    if (getattr(dataset, "format", None) or {}).get("type") == "custom":
        raise UsageError(
            "prompts: a Dataset with a transform, whose rows are not those that it holds; apply it"
            " with map, or call reset_format"
        )
    rows = dataset.with_format("arrow")
    schema = dataset.features.arrow_schema if dataset.features else None
    batches = rows.iter(batch_size=_ROWS)
    if schema is None:
        first = next(batches)
        return first.schema, _chained(first, batches)
    return schema, (batch.cast(schema) for batch in batches)


def _chained(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _of_stream(source: Any) -> Batches:
    reader = pa.RecordBatchReader.from_stream(source)
    return reader.schema, (pa.Table.from_batches([batch]) for batch in reader)


def _of_mapping(columns: Mapping[Any, Any]) -> Batches:
    return _of_arrow(pa.table({name: _values(columns[name]) for name in columns}))


def _of_records(array: Any) -> Batches:
    return _of_mapping({name: array[name] for name in array.dtype.names})


def _of_frame(frame: Any) -> Batches:
    return _of_arrow(pa.table({name: _values(frame[name]) for name in frame.columns}))


def _values(column: Any) -> Any:
    if isinstance(column, _NO_COLUMNS) or not hasattr(column, "__iter__"):
        raise UsageError(
            f"a mapping with a {type(column).__name__} in place of a column's values; pass a list"
            " of str, or a mapping from each column's name to a list of its values"
        )
    return column if hasattr(column, "__arrow_c_array__") else list(column)


def _from(module: str, name: str) -> Callable[[Any], bool]:
    """Whether an object's class is ``name`` of a library, which need not be installed."""

    def recognized(value: Any) -> bool:
        return any(
            cls.__module__.split(".")[0] == module and cls.__name__ == name
            for cls in type(value).__mro__
        )

    return recognized


def _is_struct(value: Any) -> bool:
    return isinstance(value, pa.Array | pa.ChunkedArray) and pa.types.is_struct(value.type)


def _is_stream(value: Any) -> bool:
    # a column exports a stream too
    return hasattr(value, "__arrow_c_stream__") and not is_column(value)


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def is_column(value: Any) -> bool:
    """Whether a value is one column of a table, such as a Series."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return not pa.types.is_struct(value.type)
    return any(kind(value) for kind in _COLUMNS)


_COLUMNS = [
    _from("pandas", "Series"),
    _from("pandas", "Index"),
    _from("pandas", "ExtensionArray"),
    _from("polars", "Series"),
]
_KINDS: list[tuple[Callable[[Any], bool], Callable[[Any], Batches]]] = [
    (lambda value: isinstance(value, pa.Table), _of_arrow),
    (lambda value: isinstance(value, pa.RecordBatch), _of_batch),
    (_is_struct, _of_struct),
    (_from("pandas", "DataFrame"), _of_pandas),
    (_from("datasets", "Dataset"), _of_datasets),
    (_from("datasets", "IterableDataset"), _of_datasets),
    (_is_stream, _of_stream),
    (lambda value: isinstance(value, Mapping), _of_mapping),
    (lambda value: isinstance(value, np.ndarray) and value.dtype.names is not None, _of_records),
    (_is_frame, _of_frame),
]
