"""Plain text, and what holds for all kinds of input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dori_fast.errors import UsageError
from dori_fast.runs.sources.open import input_sha256, open_prompts, prompts_on_disk
from dori_fast.runs.store.digest import file_sha256
from tests.runs.inputs import TEXT, codes, prompts, read_all, write


def test_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a cat\n\n  b \r\nlast")
    assert prompts(path) == ["a cat", "", "  b ", "last"]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a\u2028b\x0bc\x85d\n")
    assert prompts(path) == ["a\u2028b\x0bc\x85d"]


@given(st.lists(TEXT.filter(lambda t: "\n" not in t and "\r" not in t)))
@settings(max_examples=50, deadline=None)
def test_round_trip(tmp_path_factory: Any, texts: list[str]) -> None:
    path = write(
        tmp_path_factory.mktemp("t") / "p.txt",
        b"\xef\xbb\xbf" + "".join(f"{text}\n" for text in texts).encode(),
    )
    assert prompts(path) == texts


def test_a_disk_that_fails_names_the_file(tmp_path: Path) -> None:
    for suffix in ("txt", "csv", "jsonl"):
        path = tmp_path / f"p.{suffix}"
        # a read at the start of this file is an input/output error
        path.symlink_to("/proc/self/mem")
        for read in (read_all, input_sha256):
            with pytest.raises(UsageError, match=rf"p\.{suffix}: Input/output error"):
                read(path)


def test_invalid_bytes_are_named_by_their_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", b"good\ncaf\xe9 au lait\nfine\n")
    rows = read_all(path)
    assert [row["prompt"] for row in rows] == ["good", None, "fine"]
    assert rows[1]["error"] == "encoding: invalid UTF-8, byte 0xE9 at offset 8 of the file"


def test_size_limit_is_one_million_bytes(tmp_path: Path) -> None:
    fits, longer = "x" * 1_000_000, "é" * 500_001
    text = f"{fits}\r\n{longer}\n{fits}x\n{'y' * 5_000_000}\nend"
    path = write(tmp_path / "p.txt", text)
    assert codes(path) == [None, "too_long", "too_long", "too_long", None]
    assert prompts(path) == [fits, None, None, None, "end"]


def test_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "p.txt", "")) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_wide_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "p.txt", "\ufeffa cat".encode(encoding))
    with pytest.raises(UsageError, match="convert it to UTF-8"):
        read_all(path)


def test_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no columns"):
        open_prompts(write(tmp_path / "p.txt", "a"), "prompt")


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown kind of file; use one of \.txt"):
        open_prompts(write(tmp_path / "p.rtf", "x"))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        open_prompts(tmp_path / "p.csv")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        open_prompts(tmp_path / "d.txt")


def test_prompts_in_memory() -> None:
    values = ["a", "", None, 3, b"bytes", object(), "\ud800", "línea\n2"]
    with prompts_on_disk(iter(values)) as path:
        assert prompts(path) == ["a", "", None, None, None, None, None, "línea\n2"]
        assert codes(path) == [None, None, "null", "type", "type", "type", "encoding", None]
        digest = file_sha256(path)
    assert not path.exists()
    with prompts_on_disk(values) as again:
        assert file_sha256(again) == digest


def test_no_prompts_in_memory() -> None:
    with prompts_on_disk([]) as path:
        assert read_all(path) == []
