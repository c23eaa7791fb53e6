"""Runs of more than 100,000 shards are read in row order; foreign files are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import IntegrityError
from dori_fast.report import csv_rows
from dori_fast.report.figures import attack
from dori_fast.runs.store.reopen import open_run
from dori_fast.runs.store.shard import commit_shard
from tests.runs.scanning import Spelling, scanned

NUMBERS = (0, 1, 99_999, 100_000, 100_001, 1_000_000)


@pytest.fixture
def run(model: Any, tmp_path: Path) -> Path:
    """A run with one row per shard, and shards from a million rows later."""
    out = tmp_path / "run"
    result = scanned(model, ["a", "b"], out, detector=Spelling(), shard_size=1)
    row = pq.read_table(out / "shards" / "part-00001.parquet", partitioning=None)
    for number in NUMBERS[2:]:
        moved = row.set_column(0, "row_id", pa.array([number], pa.int64()))
        path = out / "shards" / f"part-{number:05d}.parquet"
        commit_shard(path, moved, result.run_hash, number)
    return out


def test_rows_come_in_order(run: Path) -> None:
    stored = open_run(run)
    assert [row for table in stored.tables("row_id") for row in table[0].to_pylist()] == [*NUMBERS]
    lines = "".join(csv_rows(stored)).splitlines()[1:]
    assert [int(line.split(",")[0].strip(chr(34))) for line in lines] == [*NUMBERS]


def test_an_attack_is_drawn_in_order(run: Path, monkeypatch: Any) -> None:
    for path in (run / "shards").iterdir():
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.append_column("embedding", pa.array([b"x"])), path)
    drawn: list[int] = []
    monkeypatch.setattr(attack, "_draw", lambda rows, *_: drawn.extend(r["row_id"] for r in rows))
    attack.draw_attack(run, 0.6)
    assert drawn == [*NUMBERS]


def test_a_foreign_name(run: Path) -> None:
    (run / "shards" / "part-00001 (copy).parquet").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"part-00001 \(copy\).parquet: not the name"):
        open_run(run)


@pytest.mark.parametrize("size", [0, "many", None])
def test_a_record_that_no_run_has_written(run: Path, size: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    record["identity"]["shard_size"] = size
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"run\.json: identity\.shard_size: Input should be"):
        open_run(run)
