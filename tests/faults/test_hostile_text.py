"""Prompts that look like something else, and prompts that come twice."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from tests.runs.scanning import scanned

HOSTILE = [
    '=cmd|"/c calc"!A0',
    "+1",
    "-1",
    "@x",
    "\tx",
    "../../etc/passwd",
    "/abs",
    "CON",
    "x" * 538,
    "////",
    "[/b] [/model/2013/x.jpg]",
]


def test_text_comes_back_exactly_and_names_no_file(model: Any, tmp_path: Path) -> None:
    result = scanned(model, HOSTILE, tmp_path / "run", seeds=1, shard_size=6)
    assert [row["prompt"] for row in result.rows()] == HOSTILE
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    shards = {f"run/shards/part-{index:05d}.parquet" for index in range(2)}
    assert names - {"run/.lock", "run/.owner"} == {"run/run.json", "run/manifest.json", *shards}


def test_duplicates_have_a_row_each_and_equal_scores(model: Any, tmp_path: Path) -> None:
    word = unicodedata.normalize("NFC", "cafe\u0301")
    prompts = [word, "A cat", word, "a cat", unicodedata.normalize("NFD", word), "a cat ", "a cat"]
    rows = list(scanned(model, prompts, tmp_path / "run", seeds=2, shard_size=3).rows())
    assert [row["prompt"] for row in rows] == prompts
    assert rows[0]["score_per_seed"] == rows[2]["score_per_seed"]
    assert rows[3]["score_per_seed"] == rows[6]["score_per_seed"]
