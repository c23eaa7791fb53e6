"""JSON lines, and the types of their columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dori_fast.errors import UsageError
from dori_fast.runs.sources.open import open_prompts
from tests.runs.inputs import TEXT, codes, read_all, write


@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=20))
@settings(max_examples=100, deadline=None)
def test_round_trip(tmp_path_factory: Any, pairs: list[tuple[str, bool]]) -> None:
    lines = [json.dumps({"i": i, "text": t}, ensure_ascii=a) for i, (t, a) in enumerate(pairs)]
    path = write(tmp_path_factory.mktemp("j") / "p.jsonl", "\n".join(lines))
    read = read_all(path)
    assert [row["prompt"] for row in read] == [text for text, _ in pairs]
    assert [row["i"] for row in read] == list(range(len(pairs)))


def test_bad_rows(tmp_path: Path) -> None:
    lines = [
        b'{"prompt": "good"}',
        b'{"prompt": null}',
        b'{"other": 1}',
        b'{"prompt": 7}',
        b'{"prompt": ["a"]}',
        b'{"prompt": NaN}',
        b'{"prompt": "cut',
        b"[1, 2]",
        b'"bare"',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "caf\xe9"}',
        b"[" * 100_000,
        b"",
        json.dumps({"prompt": "x" * 1_000_001}).encode(),
        b'{"prompt": "' + b"x" * 17_000_000 + b'"}',
        b'{"prompt": ""}',
    ]
    path = write(tmp_path / "p.jsonl", b"\n".join(lines))
    assert codes(path) == [
        None,
        "null",
        "null",
        "type",
        "type",
        "type",
        "malformed",
        "malformed",
        "malformed",
        "encoding",
        "encoding",
        "malformed",
        "too_long",
        "too_long",
        None,
    ]
    offset = len(b"\n".join(lines[:10])) + 1 + lines[10].index(b"\xe9")
    assert read_all(path)[10]["error"].endswith(f"byte 0xE9 at offset {offset} of the file")


def test_columns_are_typed_by_what_they_hold(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "i": 2**62, "f": 1, "b": True, "s": "x", "m": 1, "n": [1, {"k": None}]},
        {"prompt": "b", "i": None, "f": 0.5, "b": None, "s": None, "m": "1", "late": "here"},
        {"prompt": "c", "h": 2**70, "s": "\udcff"},
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(json.dumps(row) for row in rows))
    reader = open_prompts(path)
    types = {field.name: str(field.type) for field in reader.schema}
    assert types == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "s": "string",
        "m": "string",
        "n": "string",
        "late": "string",
        "h": "string",
    }
    read = read_all(path)
    assert [row["i"] for row in read] == [2**62, None, None]
    assert [row["f"] for row in read] == [1.0, 0.5, None]
    assert [row["m"] for row in read] == ["1", '"1"', None]
    assert json.loads(read[0]["n"]) == [1, {"k": None}]
    assert read[1]["late"] == "here"
    assert json.loads(read[2]["h"]) == 2**70


def test_no_lines_no_rows(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "p.jsonl", "\n \n")) == []


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"words": "a"}')
    with pytest.raises(UsageError, match="no prompt key among 'words'"):
        open_prompts(path)
    many = "\n".join(json.dumps({f"k{i}": 1}) for i in range(300))
    with pytest.raises(UsageError, match="not a table"):
        open_prompts(write(tmp_path / "many.jsonl", many))
