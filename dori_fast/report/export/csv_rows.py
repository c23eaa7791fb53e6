"""Rows of a run as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dori_fast.report.load import Run

# spreadsheets read text with these first characters as a formula (CWE-1236)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_rows(run: Run, *, formulas: bool = False) -> Iterator[str]:
    """A run as CSV text: the header, then one piece per shard.

    All cells are quoted and lines end in CR LF (RFC 4180); encode the text as UTF-8. Lists are
    JSON, bytes are hexadecimal, and missing values are empty.

    Args:
        run: The run.
        formulas: True to keep text unchanged. If False, text cells and names of columns that
            begin with ``= + - @``, TAB or CR get a leading apostrophe; numbers do not. Default:
            False.
    """
    yield _lines([run.columns], formulas)
    for part in run.tables():
        yield _lines((row.values() for row in part.to_pylist()), formulas)


def _lines(rows: Iterable[Iterable[Any]], formulas: bool) -> str:
    file = io.StringIO()
    table = csv.writer(file, quoting=csv.QUOTE_ALL)
    table.writerows([_cell(cell, formulas) for cell in row] for row in rows)
    return file.getvalue()


def _cell(value: Any, formulas: bool) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=_text)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, str) and not formulas and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
