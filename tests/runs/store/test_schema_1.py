"""A run directory of schema 1, written by version 0.1.0 before its files moved, still works."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import dori_fast as df
from dori_fast.runs.store.manifest import Manifest
from dori_fast.runs.store.reopen import open_run

WRITTEN = Path(__file__).parents[1] / "data" / "schema_1"
SHARD = "shards/part-00001.parquet"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, beside its input; run.json names the input relative to this folder."""
    shutil.copytree(WRITTEN, tmp_path / "schema_1")
    monkeypatch.chdir(tmp_path / "schema_1")
    return Path("run")


def rescan(run: Path) -> Any:
    model = df.load("demo", device="cpu")
    return df.scan(model, "prompts.csv", out=run, shard_size=3, resume="must")


def test_its_status(run: Path) -> None:
    found = df.status(run)
    assert (found.state, found.rows, found.shards, found.quarantined) == ("done", 5, 2, 0)


def test_it_is_read_back(run: Path) -> None:
    stored = open_run(run)
    rows = [row for table in stored.tables() for row in table.to_pylist()]
    assert (stored.kind, [row["row_id"] for row in rows]) == ("scan", [0, 1, 2, 3, 4])
    assert [row["kind"] for row in rows] == ["object", "empty", "animal", "animal", "shape"]
    assert stored.merkle_root == Manifest.read(run).computed_root


def test_its_files_and_input_are_verified(run: Path) -> None:
    seen = df.verify(run, files_only=True, root=Manifest.read(WRITTEN / "run").merkle_root)
    assert seen.findings == []
    assert "sha256 of the input, prompts.csv" in seen.checked
    (run / SHARD).write_bytes((run / SHARD).read_bytes()[:-1])
    assert {finding.where for finding in df.verify(run, files_only=True).findings} == {SHARD}


def test_a_scan_of_today_continues_it(run: Path) -> None:
    before = (run / "run.json").read_bytes()
    assert rescan(run).scored == 0
    assert (run / "run.json").read_bytes() == before
    assert (run / "manifest.json").read_bytes() == (WRITTEN / "run/manifest.json").read_bytes()
    (run / SHARD).unlink()
    result = rescan(run)
    assert (result.scored, result.counts.rows) == (2, 5)
    now, then = (pq.read_table(root / SHARD, partitioning=None) for root in (run, WRITTEN / "run"))
    assert now.schema.equals(then.schema, check_metadata=False)
    # the last bits depend on the processor
    np.testing.assert_allclose(now["score"].to_numpy(), then["score"].to_numpy(), rtol=1e-3)
