"""A run's rows as CSV that a spreadsheet may open."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from dori_fast.report.stored import Run

# what spreadsheets take for the beginning of a formula (CWE-1236)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_rows(run: Run, *, formulas: bool = False) -> Iterator[str]:
    """A run as lines of CSV, the header first; lists are JSON, what is missing is empty.

    Everything is quoted, lines end in CR LF (RFC 4180), and UTF-8 is meant.

    Args:
        run: the run.
        formulas: leave text as it is; otherwise text, and names of columns, that begin with
            ``= + - @``, TAB or CR get an apostrophe in front, and numbers do not.
    """
    yield _line(list(run.columns), formulas)
    for part in run.tables():
        for row in part.to_pylist():
            yield _line(list(row.values()), formulas)


def _line(cells: list[Any], formulas: bool) -> str:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerow([_cell(cell, formulas) for cell in cells])
    return file.getvalue()


def _cell(value: Any, formulas: bool) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    if isinstance(value, str) and not formulas and value.startswith(_FORMULA):
        return f"'{value}"
    return value
