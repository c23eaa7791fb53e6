"""Rows computed stand beside evaluations in every result and, of all calls, in run.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.cli.commands.scan import _as_json, _summary
from dori_fast.models.probes import prediction_jvp
from dori_fast.report.pages.scan import scan_page
from dori_fast.runs.methods.attack import Judging, attack
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.reopen import open_run
from tests.runs.scanning import scanned

PROMPTS = ["a cat", "a dog", "a hen"]


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_bytes())
    return found


def counters(run: Path) -> tuple[int | None, int | None]:
    found = record(run)
    return found.get("evaluations"), found.get("rows_computed")


@pytest.fixture
def own(tiny_directory: Path) -> Any:
    """A model that has computed nothing yet, with batches of 8."""
    return df.load(tiny_directory, device="cpu", batch_size=8)


def test_a_scan_counts_padding_and_prefixes(own: Any, tmp_path: Path) -> None:
    result = scanned(own, PROMPTS, tmp_path / "run", seeds=2)
    # two seeds without text, and three prompts on both
    assert result.evaluations == 2 + 3 * 2
    # a batch each: what the seeds share, the seeds without text, the prompts
    assert result.rows_computed == own.engine.rows_computed == 3 * 8
    assert counters(tmp_path / "run") == (8, 24)
    assert "2.67 UNet evaluations (8.00 rows with padding) each" in _summary(result)
    assert json.loads(_as_json(result, 1))["unet_rows_computed"] == 24
    page = str(scan_page(open_run(tmp_path / "run")))
    assert "UNet rows with padding per prompt" in page and "8.00" in page


def test_calls_of_one_run_add_up(own: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = scanned(own, PROMPTS, run, seeds=2, shard_size=1)
    before = (run / "run.json").read_bytes()
    assert scanned(own, PROMPTS, run, seeds=2, shard_size=1).rows_computed == 0
    assert (run / "run.json").read_bytes() == before
    (run / "shards" / "part-00001.parquet").unlink()
    second = scanned(own, PROMPTS, run, seeds=2, shard_size=1)
    assert 0 < second.rows_computed < first.rows_computed
    total = first.evaluations + second.evaluations, first.rows_computed + second.rows_computed
    assert counters(run) == total


def test_what_a_killed_call_or_jobs_have_spent_is_unknown(own: Any, tmp_path: Path) -> None:
    run, how = tmp_path / "killed", {"seeds": 2, "shard_size": 1}
    scanned(own, PROMPTS, run, **how)
    # as a killed call leaves it
    (run / "run.json").write_text(json.dumps({**record(run), "state": "running"}))
    (run / "shards" / "part-00002.parquet").unlink()
    scanned(own, PROMPTS, run, **how)
    assert record(run)["state"] == "done" and counters(run) == (None, None)

    run = tmp_path / "jobs"
    for job in (0, 1):
        assert scanned(own, PROMPTS, run, num_jobs=2, job_id=job, **how).rows_computed > 0
    scanned(own, PROMPTS, run, **how)
    assert record(run)["state"] == "done" and counters(run) == (None, None)


def test_an_older_record_has_no_counters(own: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scanned(own, PROMPTS, run, seeds=2)
    older = {k: v for k, v in record(run).items() if k not in ("evaluations", "rows_computed")}
    (run / "run.json").write_text(json.dumps(older))
    read = RunRecord.read(run / "run.json")
    assert read.evaluations is None and read.rows_computed is None
    assert "rows_computed" not in read.model_dump()
    assert "with padding" not in str(scan_page(open_run(run)))


def test_a_run_of_another_method_counts_too(own: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\na dog\n")
    images = {p: torch.zeros(16, 16, 3, dtype=torch.uint8).numpy() for p in PROMPTS}
    method = Dori(steps=1, draws=2)
    judging = Judging(seeds=1, steps=1)
    result = attack(
        own, tmp_path / "p.csv", images, out=tmp_path / "run", method=method, judging=judging
    )
    assert result.run.counts.ok == 2
    assert result.run.rows_computed == own.engine.rows_computed > result.run.evaluations > 0
    assert counters(tmp_path / "run") == (result.run.evaluations, result.run.rows_computed)


def test_a_derivative_counts_twice_and_a_plain_forward_once(own: Any) -> None:
    engine, latents = own.engine, own.noise([0, 1])
    condition = own.encode(PROMPTS)
    tangents = torch.ones(3, 2, *own.latent_shape)
    prediction_jvp(own, condition, latents, tangents, 500)
    # a batch for what the latents share, and one that counts twice
    assert (engine.evaluations, engine.rows_computed) == (2 * 6, 8 + 2 * 8)
    text = condition.embeddings[:2]
    with torch.no_grad():
        engine.plain(latents, 500, text)
    assert (engine.evaluations, engine.rows_computed) == (2 * 6 + 2, 3 * 8 + 2)
