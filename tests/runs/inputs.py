"""Helpers to read an input whole, and text that is hard to encode."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from dori_fast.errors import UsageError
from dori_fast.runs.sources.open import open_prompts

NASTY = [
    "",
    "   ",
    "a;b,c\td|e",
    'say "hi"',
    "two\nlines",
    "carriage\r\nreturn",
    "\x00nul \x1b[2J\x1b]0;t\x07 \x85",
    "\u202ertl \u200b\u2028\u2029",
    "[/b] [/model/2013/x.jpg]",
    "</script><img onerror=1> {{7*7}}",
    '=cmd|"/c calc"!A0',
    "../../etc/passwd",
    "👩‍👩‍👧 e" + "\u0301" * 1000,
    "العربية 中文 ไทย",
    "\ufeffmark in the middle",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def read_all(path: Path, column: str | None = None, size: int = 3) -> list[dict[str, Any]]:
    rows = []
    for chunk in open_prompts(path, column).chunks(size):
        assert chunk.first == len(rows)
        assert len(chunk) <= size
        for i, (prompt, error) in enumerate(zip(chunk.prompts, chunk.errors, strict=True)):
            assert (prompt is None) == (error is not None)
            extra = {name: chunk.extra[name][i].as_py() for name in chunk.extra.column_names}
            rows.append({"prompt": prompt, "error": error, **extra})
        last = chunk.fraction
    assert not rows or last == 1.0
    return rows


def prompts(path: Path, column: str | None = None, size: int = 3) -> list[str | None]:
    return [row["prompt"] for row in read_all(path, column, size)]


def codes(path: Path, column: str | None = None) -> list[str | None]:
    errors = [row["error"] for row in read_all(path, column)]
    return [error and error.split(":")[0] for error in errors]


def refusal(read: Callable[[], object]) -> str:
    """The message of the UsageError that a call raises."""
    with pytest.raises(UsageError) as info:
        read()
    return str(info.value)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def csv_text(rows: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, lineterminator=end).writerows(rows)
    return buffer.getvalue()
