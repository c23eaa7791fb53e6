"""Prompts in memory, written to one file that is then read like any other."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.columnar import first_line
from dori_fast.runs.sources.folders.suffixes import SUFFIXES
from dori_fast.runs.sources.memory.tables import is_column, pulled, table_batches
from dori_fast.runs.sources.rows import find_column

# more are rows, not columns
_ROW_LABELS = 256
_LISTS = "pass a list of str, a table with a column of prompts, or the path of a file"


def write_in_memory(prompts: Any, folder: Path) -> Path:
    """Write prompts in memory to a file.

    Args:
        prompts: an iterable of str; an iterable of mappings, which are rows; a column (of pandas,
            polars or pyarrow, or a one-dimensional array); or a table, see
            :func:`dori_fast.runs.sources.memory.tables.table_batches`.
        folder: folder of the file.

    Returns:
        ``prompts.jsonl`` with an object per value, or ``prompts.arrow`` with a table's columns.

    Raises:
        UsageError: anything else, with what it is and what to pass.
    """
    _refuse(prompts)
    found = table_batches(prompts)
    if found is None:
        values = pulled(_values(prompts), type(prompts).__name__)
        return _write_lines(values, folder / "prompts.jsonl")
    schema, tables = found
    path = folder / "prompts.arrow"
    try:
        with pa.ipc.new_stream(str(path), schema) as file:
            for table in tables:
                file.write_table(table)
    except pa.ArrowException as error:
        raise UsageError(
            f"prompts: a {type(prompts).__name__} that cannot be read to its end"
            f" ({first_line(error)}); {_LISTS}"
        ) from error
    return path


def described(prompts: Any) -> str:
    """A short name of prompts for a message: their path, or what they are in memory."""
    if isinstance(prompts, str | os.PathLike):
        return str(prompts)
    return f"the {type(prompts).__name__} of prompts"


def prompts_path(prompts: Any, command: str) -> Path:
    """The path of prompts, for a call that reads files alone.

    Raises:
        UsageError: the prompts are in memory.
    """
    if isinstance(prompts, str | os.PathLike):
        return Path(prompts)
    raise UsageError(
        f"{command}: reads prompts from files, not from a {type(prompts).__name__} in memory; write"
        " them to a file, such as .parquet or .jsonl, and pass its path"
    )


def _refuse(prompts: Any) -> None:
    """Raise UsageError for what is no prompts, or has no order that a later call could repeat."""
    kind = type(prompts).__name__
    if prompts is None:
        raise UsageError(f"prompts=None; {_LISTS}")
    if isinstance(prompts, bytes | bytearray | memoryview):
        raise UsageError(f"prompts: {kind} where text was expected; decode it, and {_LISTS}")
    if isinstance(prompts, set | frozenset):
        raise UsageError(
            f"prompts: a {kind} has another order in every process, so no run could be resumed;"
            " pass sorted(prompts)"
        )
    if isinstance(prompts, io.IOBase):
        raise UsageError("prompts: an open file, whose lines have their line ends; pass its path")
    if isinstance(prompts, Mapping):
        _refuse_mapping(prompts)
    if label := _label_of_a_row(prompts):
        raise UsageError(
            f"prompts: a {kind} with the label {label!r}, so one row of a table; pass the table, or"
            " a list with the prompt"
        )
    if isinstance(prompts, np.ndarray) and prompts.ndim != 1:
        raise UsageError(
            f"prompts: an array of shape {prompts.shape}; pass one dimension, such as array[:, 0]"
        )


def _label_of_a_row(prompts: Any) -> str | None:
    """The name of a prompt column among the labels of a short Series, such as ``df.iloc[0]``."""
    labels = getattr(prompts, "index", None) if is_column(prompts) else None
    if labels is None or callable(labels) or len(labels) > _ROW_LABELS:
        return None
    return find_column([label for label in labels if isinstance(label, str)], None)


def _refuse_mapping(prompts: Mapping[Any, Any]) -> None:
    if not prompts:
        raise UsageError(f"prompts: an empty {type(prompts).__name__}; {_LISTS}")
    names = ", ".join(repr(name) for name in [*prompts][:20])
    if any(hasattr(value, "features") for value in prompts.values()):
        raise UsageError(f"prompts: a {type(prompts).__name__} of the splits {names}; pass one")
    if not all(isinstance(name, str) for name in prompts):
        raise UsageError(f"prompts: a mapping with the keys {names}, no names of columns; {_LISTS}")


def _values(prompts: Any) -> Iterator[Any]:
    if is_column(prompts):
        return _column_values(prompts)
    try:
        return iter(prompts)
    except TypeError as error:
        raise UsageError(
            f"prompts: a {type(prompts).__name__}, which holds none; {_LISTS}"
        ) from error


def _column_values(column: Any) -> Iterator[Any]:
    """The values of a column; missing ones become None."""
    if hasattr(column, "isna"):
        try:
            pairs = zip(column, column.isna(), strict=True)
        except NotImplementedError as error:
            raise UsageError(
                f"prompts: a {type(column).__name__}, whose values are no texts; pass one level"
            ) from error
        return (None if missing else value for value, missing in pairs)
    return iter(column.to_pylist() if hasattr(column, "to_pylist") else column.to_list())


def _write_lines(values: Iterator[Any], path: Path) -> Path:
    first = list(islice(values, 1))
    if first and _is_file(first[0]):
        raise UsageError(
            f"prompts: a list that begins with the file {str(first[0])!r}, not with a prompt; pass"
            " one path, a folder or a pattern"
        )
    rows = bool(first) and isinstance(first[0], Mapping)
    with path.open("w") as file:
        for value in chain(first, values):
            row = value if rows else {"prompt": value}
            file.write(_line(dict(row) if isinstance(row, Mapping) else row, rows) + "\n")
    return path


def _is_file(value: object) -> bool:
    if isinstance(value, str):
        return Path(value).suffix.lower() in SUFFIXES and os.path.isfile(value)
    return isinstance(value, os.PathLike)


def _line(row: Any, is_row: bool) -> str:
    try:
        # a value that JSON cannot hold is no text, and is quarantined as an object
        return json.dumps(row, default=_as_json if is_row else lambda _: {})
    except (TypeError, ValueError) as error:
        raise UsageError(f"prompts: a row that JSON cannot hold ({error}); {_LISTS}") from error


def _as_json(value: Any) -> Any:
    """A cell of a row: numbers of numpy as such, dates as text, anything else by its type."""
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return {"type": type(value).__name__}
