"""Rows as CSV: what goes in comes out, and nothing of it is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dori_fast.report import csv_rows


class Rows:
    """A run of one table."""

    root = Path("run")

    def summary(self) -> dict[str, Any]:
        return {}

    def __init__(self, **columns: list[Any]) -> None:
        self.table = pa.table(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.table.column_names)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        yield self.table


def parsed(*args: Any, **options: Any) -> list[list[str]]:
    text = "".join(csv_rows(*args, **options))
    assert text.endswith("\r\n")
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_what_looks_like_a_formula_gets_an_apostrophe(first):
    text = f"{first}cmd|' /C calc'!A0"
    run = Rows(**{"prompt": [text, "a = b"], f"{first}x": ["1", "2"], "score": [-1.5, 2.0]})
    header, one, two = parsed(run)
    assert header == ["prompt", f"'{first}x", "score"]
    # a negative number is a number
    assert one == [f"'{text}", "1", "-1.5"] and two == ["a = b", "2", "2.0"]
    assert parsed(run, formulas=True)[1][0] == text


def test_lists_bytes_and_nothing():
    run = Rows(seeds=[[0.5, -1.0], None], truncated=[True, None], mask=[[b"\xff"], None])
    assert parsed(run)[1:] == [["[0.5, -1.0]", "true", '["ff"]'], ["", "", ""]]
    assert parsed(Rows(raw=[b"\x00="]))[1] == ["003d"]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_any_text_comes_back(texts):
    for row, text in zip(parsed(Rows(prompt=texts))[1:], texts, strict=True):
        assert row[0].removeprefix("'") == text.removeprefix("'")
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [row[0] for row in parsed(Rows(prompt=texts), formulas=True)[1:]] == texts
