"""Memory of workers: the parent keeps none from them, and each shard notes its batch size."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import dori_fast as df
from dori_fast.detect import Wen
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.shard import commit_shard, read_footer
from dori_fast.runs.workers.processes import ProcessSlot
from tests.runs.faulty import LOADED, OPTIONS, Rounding, refusing, rounded
from tests.runs.scanning import scanned

PROMPTS = [f"small cat {i}" for i in range(60)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread here, as each of two workers has at least."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(one_thread: None, tiny_directory: Path) -> Any:
    """The tiny model without results of another number of threads."""
    return df.load(tiny_directory, batch_size=8)


@pytest.fixture
def rounding(monkeypatch: Any) -> None:
    """Scores whose last bits depend on the batch size, in this process."""
    true = Wen.per_seed
    monkeypatch.setattr(Wen, "per_seed", lambda d, model, c: rounded(model, true(d, model, c)))


def sizes(run: Path) -> list[int | None]:
    """The batch sizes of a run's shards, in order."""
    return [read_footer(path).batch_size for path in sorted(shard_names.paths(run))]


def rescored(run: Path, model: Any) -> str:
    """The line about scores; there must be no findings."""
    seen = df.verify(run, model=model, sample=1, seed=0)
    assert seen.findings == []
    return next(line for line in seen.checked if "scored again" in line)


def test_a_worker_out_of_memory_notes_its_smaller_batches(
    small: Any, rounding: None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "marks").mkdir()
    detector = Rounding({"small cat 35": "memory"}, tmp_path / "marks")
    result = scanned(small, PROMPTS, run, detector=detector, workers=2, **OPTIONS)
    found = sizes(run)
    # the first rows of shard 3 had batches of 8, and were then scored once more
    assert result.counts.ok == 60 and found[3] == 4 and set(found) == {4, 8}
    assert json.loads((run / "run.json").read_bytes())["batch_size"] == 4
    # whatever batch size the model has, every shard is scored again with its own
    assert rescored(run, small) == "60 rows scored again, to the bit; seed 0"
    assert small.batch_size == 8


@pytest.mark.slow
def test_workers_whose_first_batch_does_not_fit_get_work(
    small: Any, rounding: None, tmp_path: Path
) -> None:
    (tmp_path / "marks").mkdir()
    detector = Rounding({LOADED: "memory"}, tmp_path / "marks", times=2)
    scanned(small, PROMPTS, tmp_path / "run", detector=detector, workers=2, **OPTIONS)
    assert sizes(tmp_path / "run") == [4] * 6
    assert "to the bit" in rescored(tmp_path / "run", small)


def test_one_process_out_of_memory_scores_the_shard_anew(
    tiny_directory: Path, tmp_path: Path, monkeypatch: Any, request: Any
) -> None:
    own = df.load(tiny_directory, batch_size=8)
    # so that it is restored, which the fault replaces
    with monkeypatch.context() as patched:
        patched.setattr(F, "conv2d", F.conv2d)
        detector = Rounding({"small cat 37": "memory"}, tmp_path)
        scanned(own, PROMPTS, tmp_path / "run", detector=detector, shard_size=20)
    assert sizes(tmp_path / "run") == [8, 4, 4] and own.batch_size == 8
    # the faulty detector has it of its own
    request.getfixturevalue("rounding")
    assert "to the bit" in rescored(tmp_path / "run", own)


def test_a_resume_and_jobs_may_have_other_batch_sizes(
    small: Any, rounding: None, tmp_path: Path
) -> None:
    run = tmp_path / "resumed"
    scanned(small, PROMPTS, run, seeds=2, **OPTIONS)
    (run / "shards" / "part-00002.parquet").unlink()
    scanned(small, PROMPTS, run, seeds=2, batch_size=5, **OPTIONS)
    assert sizes(run) == [8, 8, 5, 8, 8, 8]
    assert "to the bit" in rescored(run, small)

    run = tmp_path / "jobs"
    for job, size in ((1, 4), (0, 8)):
        scanned(small, PROMPTS, run, batch_size=size, num_jobs=2, job_id=job, **OPTIONS)
    scanned(small, PROMPTS, run, **OPTIONS)
    assert sizes(run) == [8, 4] * 3
    assert "to the bit" in rescored(run, small)


def test_verify_out_of_memory_compares_within_the_tolerance(
    small: Any, rounding: None, tiny_directory: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    scanned(small, PROMPTS[:20], tmp_path / "run", **OPTIONS)
    own = df.load(tiny_directory, batch_size=2)
    monkeypatch.setattr(F, "conv2d", refusing(4, F.conv2d))
    assert "within 0.001 (batch size 8 then, 4 now)" in rescored(tmp_path / "run", own)
    assert own.batch_size == 2


def test_verify_out_of_memory_in_one_shard_compares_the_others_to_the_bit(
    small: Any, rounding: None, tiny_directory: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run = tmp_path / "run"
    scanned(small, PROMPTS[:20], run, **OPTIONS)
    last = run / "shards" / "part-00001.parquet"
    last.unlink()
    result = scanned(small, PROMPTS[:20], run, batch_size=4, **OPTIONS)
    table, at = pq.read_table(last, partitioning=None), result.counts.rows // 2
    scores = table["score"].to_numpy() * np.float32(1 + 1e-6)
    column = table.schema.get_field_index("score")
    edited = table.set_column(column, table.schema.field(column), pa.array(scores, pa.float32()))
    commit_shard(last, edited.replace_schema_metadata(None), result.run_hash, at, 4)
    own = df.load(tiny_directory, batch_size=2)
    monkeypatch.setattr(F, "conv2d", refusing(4, F.conv2d))
    seen = df.verify(run, model=own, sample=1, seed=0)
    wrong = [finding for finding in seen.findings if finding.what.startswith("row ")]
    # the first shard's 8 samples do not fit, so that it is compared within a tolerance
    assert "within 0.001 (batch size 8 then, 4 now)" in seen.checked[-1]
    assert len(wrong) == 10 and {finding.where for finding in wrong} == {
        "shards/part-00001.parquet"
    }


def test_a_shard_of_an_older_version_has_the_batch_size_of_the_run(
    small: Any, rounding: None, tmp_path: Path, monkeypatch: Any
) -> None:
    from dori_fast.runs.workers import engine

    commit = engine.commit_shard
    monkeypatch.setattr(engine, "commit_shard", lambda *given: commit(*given[:4]))
    scanned(small, PROMPTS[:20], tmp_path / "run", batch_size=4, **OPTIONS)
    assert sizes(tmp_path / "run") == [None, None]
    assert "to the bit" in rescored(tmp_path / "run", small)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_parent_drops_a_loaded_model_before_workers_start(
    tiny_directory: Path, tmp_path: Path, monkeypatch: Any, workers: int
) -> None:
    networks: list[Any] = []
    alive: list[bool] = []
    start = ProcessSlot.start

    def load() -> Any:
        loaded = df.load(tiny_directory, batch_size=8)
        networks.append(weakref.ref(loaded.unet))
        return loaded

    def started(slot: ProcessSlot) -> None:
        alive.append(networks[0]() is not None)
        start(slot)

    monkeypatch.setattr(ProcessSlot, "start", started)
    result = scanned(load, PROMPTS[:20], tmp_path / "run", workers=workers, **OPTIONS)
    assert result.counts.ok == 20 and alive == [False] * (workers if workers > 1 else 0)
    assert result.evaluations >= 40 and result.rows_computed >= result.evaluations
