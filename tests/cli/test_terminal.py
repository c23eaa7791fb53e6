"""Progress and data on a terminal and off it."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dori_fast._text import harmless
from dori_fast.cli import terminal
from dori_fast.cli.terminal import Status, format_table
from dori_fast.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PROGRESS = Progress(done=2048, quarantined=3, computed=1024, seconds=10.0, remaining=3723.4)
TEXT = "2,048 rows, 102.4 rows/s, ETA 1:02:03, 3 quarantined"


@given(st.text())
@settings(deadline=None)
def test_nothing_unprintable_gets_through(text: str) -> None:
    shown = harmless(text)
    unsafe = {c for c in shown if not c.isprintable() and c not in "\u200c\u200d"}
    # private use and unassigned characters and wide spaces move nothing
    assert all(ord(c) > 0x9F and c not in "\u2028\u2029\u061c\u200e\u200f\ufeff" for c in unsafe)
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [/b] 100%", "plain [/b] 100%"),
        ("\x1b[31m\x00\x9b", r"\x1b[31m\x00\x9b"),
        ("a\u202eb\u2066c\u200bd", r"a\u202eb\u2066c\u200bd"),
        ("two\r\nlines", r"two\x0d\x0alines"),
        ("👩‍👩‍👧 ไทย العربية", "👩‍👩‍👧 ไทย العربية"),
        ("\ud800", r"\ud800"),
    ],
)
def test_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_table_fits_a_terminal(monkeypatch: Any) -> None:
    rows = [("1", "x" * 500), ("10", "a\nb")]
    assert format_table(("n", "text"), rows).splitlines()[1] == "1   " + "x" * 500
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    header, first, second = format_table(("n", "text"), rows).splitlines()
    assert first == "1   " + "x" * 35 + "…"
    assert (header, second) == ("n   text", r"10  a\x0ab")


def test_live_progress_is_one_line() -> None:
    stream = Terminal()
    with Status(stream) as status:
        status.progress(PROGRESS)
        logging.getLogger("dori_fast.runs").warning("careful\x1b[2J")
        status.progress(PROGRESS)
    clear = "\r\x1b[K"
    log = f"{clear}warning: careful\\x1b[2J\n"
    assert stream.getvalue() == f"{clear}{TEXT}{log}{clear}{TEXT}{clear}"
    assert logging.getLogger("dori_fast").handlers == []


def test_progress_in_a_log_comes_every_ten_seconds(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Status(stream) as status:
        for second in range(0, 31):
            now[0] = float(second)
            status.progress(PROGRESS)
    assert stream.getvalue() == f"{TEXT}\n" * 3


def test_unknown_time_left() -> None:
    stream = Terminal()
    Status(stream).progress(Progress(0, 0, 0, 0.0))
    assert "0 rows, 0.0 rows/s, ETA ?, 0 quarantined" in stream.getvalue()
