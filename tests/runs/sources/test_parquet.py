"""Parquet of every text type, row-group size and kind of damage."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import NASTY, codes, prompts, read_all, write

KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def test_text_types_and_row_groups(tmp_path: Path) -> None:
    texts, path = [*NASTY, None, *NASTY], tmp_path / "p.parquet"
    wrong = []
    for kind, group in product(KINDS, (1, 4, 1000)):
        column = pa.array(texts, pa.string()).cast(kind)
        table = pa.table({"TEXT": column, "n": pa.array(range(len(texts)), pa.int64())})
        pq.write_table(table, path, row_group_size=group)
        sizes = [size for size in (1, 3, 7, 100) if prompts(path, size=size) != texts]
        if sizes or codes(path).count("null") != 1:
            wrong.append((kind, group, sizes))
    assert wrong == []


def test_passed_columns_keep_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "id": pa.array([-(2**63), 2**63 - 1], pa.int64()),
            "when": pa.array([0, 1], pa.timestamp("ns", "UTC")),
            "nested": pa.array([[{"k": 1}], None]),
            "score": pa.array([0.5, None], pa.float16()),
        }
    )
    path = tmp_path / "p.parquet"
    pq.write_table(table, path)
    (chunk,) = open_prompts(path).chunks(10)
    assert chunk.extra.column_names == ["id", "when", "nested", "source_score"]
    for name in ("id", "when", "nested"):
        assert chunk.extra[name].combine_chunks().equals(table[name].combine_chunks())


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    claimed = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": raw, "note": claimed}), path)
    rows = read_all(path)
    assert [row["prompt"] for row in rows] == ["fine", None, None]
    assert rows[1]["error"] == "encoding: invalid UTF-8, byte 0xE9 at offset 3 of the prompt"
    assert [row["note"] for row in rows] == ["fine", "caf\\xe9", None]


def test_bytes_that_are_not_text_within_lists(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    claimed = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = pa.table({"prompt": ["a", "b"], "many": pa.ListArray.from_arrays([0, 1, 3], claimed)})
    path = tmp_path / "p.parquet"
    pq.write_table(table, path)
    with pytest.raises(UsageError, match=r"p\.parquet: column 'many' has broken values.*UTF8"):
        read_all(path)
    (chunk,) = open_prompts(path, selection=Selection.of(keep=[])).chunks(5)
    assert chunk.prompts == ["a", "b"]


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["é" * 500_000, "é" * 500_000 + "x"]}), path)
    assert codes(path) == [None, "too_long"]


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    assert read_all(path) == []


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [1, 2], "x": [["a"], ["b"]]}), path)
    with pytest.raises(UsageError, match="int64, not text"):
        open_prompts(path)
    with pytest.raises(UsageError, match="not text"):
        open_prompts(path, "x")
    with pytest.raises(UsageError, match="no column 'y' among 'prompt', 'x'"):
        open_prompts(path, "y")
    with pytest.raises(UsageError, match="not a readable parquet file"):
        open_prompts(write(tmp_path / "cut.parquet", path.read_bytes()[:-9]))


def test_names_of_columns_that_are_not_text(tmp_path: Path) -> None:
    table, parquet, arrow = pa.table({"prompt": ["a"], "wide": [1]}), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    for name, sink in {"p.parquet": parquet, "p.arrow": arrow}.items():
        data = sink.getvalue()
        damaged = data.replace(b"wide", b"w\xefde")
        with pytest.raises(UsageError, match=f"{name}: .*can't decode byte 0xef"):
            open_prompts(write(tmp_path / name, damaged))


def test_a_damaged_page_names_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    texts = [f"prompt {i} {i * i}" for i in range(40)]
    pq.write_table(pa.table({"prompt": texts}), path, row_group_size=10, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    third = pq.read_metadata(path).row_group(2).column(0)
    data[third.data_page_offset + 40] ^= 0xFF
    chunks = open_prompts(write(path, bytes(data))).chunks(10)
    assert next(chunks).prompts == texts[:10]
    assert next(chunks).prompts == texts[10:20]
    with pytest.raises(UsageError, match="row group 2 of 4 cannot be read"):
        next(chunks)


def test_a_byte_order_mark_in_front_of_a_columns_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"\ufeffprompt": ["a"], "n": [1]}), tmp_path / "p.parquet")
    assert read_all(tmp_path / "p.parquet") == [{"prompt": "a", "error": None, "n": 1}]
    assert prompts(tmp_path / "p.parquet", "prompt") == ["a"]
