"""Rows of a run as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.compute as pc

from dori_fast.errors import UsageError
from dori_fast.report.load import Run

# spreadsheets read text with these first characters as a formula (CWE-1236)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_rows(run: Run, *, formulas: bool = False, flagged: bool = False) -> Iterator[str]:
    """A run as CSV text: the header, then one piece per shard.

    All cells but numbers are quoted and lines end in CR LF (RFC 4180); encode the text as UTF-8.
    Lists are JSON, bytes are hexadecimal, truth values are true and false, and missing values are
    empty.

    Args:
        run: The run.
        formulas: True to keep text unchanged. If False, text cells and names of columns that
            begin with ``= + - @``, TAB or CR get a leading apostrophe; numbers do not. Default:
            False.
        flagged: True for the flagged rows alone, highest score first. Default: False.

    Raises:
        UsageError: flagged rows of a run without a decision.
    """
    yield _lines([run.columns], formulas)
    if flagged:
        rows = sorted(_flagged(run), key=lambda row: (-row["score"], row["row_id"]))
        yield _lines((row.values() for row in rows), formulas)
        return
    for part in run.tables():
        yield _lines((row.values() for row in part.to_pylist()), formulas)


def _flagged(run: Run) -> Iterator[dict[str, Any]]:
    if "flagged" not in run.columns:
        raise UsageError(f"export: no row of {run.root} was decided on; run dori-fast flag first")
    for part in run.tables():
        yield from part.filter(pc.fill_null(part["flagged"], False)).to_pylist()


def _lines(rows: Iterable[Iterable[Any]], formulas: bool) -> str:
    file = io.StringIO()
    table = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
    table.writerows([_cell(cell, formulas) for cell in row] for row in rows)
    return file.getvalue()


def _cell(value: Any, formulas: bool) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=_text)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not formulas and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
