"""Decisions on stored scores: right, kept, never a reason to score again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.calibrate import calibrate
from dori_fast.runs.result import ScanResult
from dori_fast.runs.scoring.decision import CalibrationRecord
from dori_fast.runs.store.manifest import Manifest
from dori_fast.runs.store.reopen import open_run
from tests.runs.scanning import Spelling

RNG = np.random.default_rng(0)


def words(n: int, least: int = 2, most: int = 60) -> list[str]:
    return ["".join(map(chr, RNG.integers(97, 123, RNG.integers(least, most)))) for _ in range(n)]


CLEAN, FOUND = words(400), words(40, 250, 300)
PROMPTS = [*words(150), *FOUND, None, *words(150)]


@pytest.fixture(scope="module")
def record(model: Any, tmp_path_factory: Any) -> CalibrationRecord:
    out = tmp_path_factory.mktemp("calibration") / "c.json"
    return calibrate(model, CLEAN, out=out, detector=Spelling())


def scan(model: Any, out: Path, prompts: list[Any] = PROMPTS, **how: Any) -> ScanResult:
    detector = how.pop("detector", None) or Spelling()
    return df.scan(model, prompts, out=out, detector=detector, max_errors=9, shard_size=64, **how)


def test_p_values_and_flags_by_hand(model: Any, record: CalibrationRecord, tmp_path: Path) -> None:
    result = scan(model, tmp_path / "run", calibration=record, fpr=0.02)
    rows = list(result.rows())
    for row in rows:
        if row["score"] is None:
            assert row["p_value"] is None and row["flagged"] is None
            continue
        higher = sum(score >= row["score"] for score in record.scores)
        assert row["p_value"] == pytest.approx((1 + higher) / 401, rel=1e-12)
        assert row["flagged"] == (row["p_value"] <= 0.02)
    decision = result.decision
    assert decision.flagged == sum(bool(row["flagged"]) for row in rows) > 30
    assert decision.rows == len(PROMPTS) - 1
    assert decision.expected_false == pytest.approx(decision.rows * 8 / 401)
    flagged = [row["score"] for row in rows if row["flagged"]]
    others = [row["score"] for row in rows if row["flagged"] is False]
    assert max(others) <= decision.threshold < min(flagged)
    assert result.top(1)[0]["flagged"] is True


@pytest.mark.parametrize(("variant", "rate"), [("bh", 0.1), ("by", 0.2)])
def test_false_discovery_rates_are_those_of_scipy(
    model: Any, record: CalibrationRecord, tmp_path: Path, variant: str, rate: float
) -> None:
    result = scan(model, tmp_path / "run", calibration=record, fdr=rate, fdr_variant=variant)
    rows = [row for row in result.rows() if row["score"] is not None]
    adjusted = false_discovery_control([row["p_value"] for row in rows], method=variant)
    assert [row["flagged"] for row in rows] == (adjusted <= rate).tolist()
    assert result.decision.expected_false == pytest.approx(rate * result.decision.flagged)
    assert result.decision.flagged > 20


def test_changing_the_rate_scores_nothing(
    model: Any, record: CalibrationRecord, tmp_path: Path
) -> None:
    detector = Spelling()
    run = scan(model, tmp_path / "run", detector=detector)
    asked, root = len(detector.asked), run.merkle_root
    assert run.decision is None and "flagged" not in next(run.rows())
    few = df.flag(run.out, record, fpr=0.01)
    many = df.flag(run.out, record, fpr=0.2)
    assert few.flagged < many.flagged
    again = scan(model, tmp_path / "run", detector=detector, calibration=record, fdr=0.1)
    assert again.scored == 0 and len(detector.asked) == asked
    # the scores' root is untouched; the newest decision is the one that readers see
    assert Manifest.read(run.out).merkle_root == root
    assert [path.name for path in sorted((run.out / "decisions").iterdir())] == [
        "0001",
        "0002",
        "0003",
    ]
    assert sum(bool(row["flagged"]) for row in run.rows()) == again.decision.flagged
    # the same decision is not made twice
    df.flag(run.out, record, fdr=0.1)
    assert len(list((run.out / "decisions").iterdir())) == 3
    kept = json.loads((run.out / "decisions" / "0001" / "decision.json").read_text())
    assert kept["rule"] == {"kind": "fpr", "rate": 0.01} and kept["made"]
    assert kept["calibration"]["scores_sha256"] == record.sha256


def test_neither_shards_nor_workers_nor_resumes_change_a_decision(
    model: Any, record: CalibrationRecord, tmp_path: Path
) -> None:
    whole = df.scan(
        model, PROMPTS, out=tmp_path / "whole", detector=Spelling(), max_errors=9,
        calibration=record, fdr=0.05,
    )  # fmt: skip
    for job in range(3):
        scan(model, tmp_path / "jobs", num_jobs=3, job_id=job, calibration=record, fdr=0.05)
    jobs = scan(model, tmp_path / "jobs", calibration=record, fdr=0.05)
    assert jobs.scored == 0
    ours, theirs = (
        [(row["p_value"], row["flagged"]) for row in result.rows()] for result in (whole, jobs)
    )
    assert ours == theirs
    (tmp_path / "jobs" / "shards" / "part-00002.parquet").unlink()
    resumed = scan(model, tmp_path / "jobs", calibration=record, fdr=0.05)
    assert resumed.scored == 64 and resumed.decision.flagged == whole.decision.flagged


def test_the_flagged_share_of_new_clean_prompts_is_the_wanted_one(
    model: Any, tmp_path: Path
) -> None:
    made = calibrate(model, words(2000), out=tmp_path / "c.json", detector=Spelling())
    result = df.scan(
        model, words(2000), out=tmp_path / "r", detector=Spelling(), calibration=made, fpr=0.05
    )
    # 100 expected, four standard deviations of the two samples
    assert 60 <= result.decision.flagged <= 145
    assert result.decision.expected_false == pytest.approx(100, abs=0.1)


def test_an_edited_decision_is_found(model: Any, record: CalibrationRecord, tmp_path: Path) -> None:
    run = scan(model, tmp_path / "run", calibration=record, fpr=0.05).out
    seen = df.verify(run, files_only=True)
    assert seen.findings == [] and "1 decisions against scores and calibrations" in seen.checked
    folder = run / "decisions" / "0001"
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    kept = json.loads(whole[folder / "decision.json"])

    def found() -> list[str]:
        wrong = [finding.what for finding in df.verify(run, files_only=True).findings]
        for path, data in whole.items():
            path.write_bytes(data)
        return wrong

    (folder / "decision.json").write_text(json.dumps({**kept, "flagged": 1}))
    assert "does not follow from the scores and its calibration" in found()
    table = pq.read_table(folder / "rows.parquet")
    pq.write_table(table.slice(1), folder / "rows.parquet")
    assert "rows.parquet is not the file that was decided with" in found()
    (folder / "calibration.json").write_text("{}")
    assert any("calibration.json" in what for what in found())
    assert df.verify(run, files_only=True).findings == []


def test_what_cannot_be_decided_is_refused(
    model: Any, record: CalibrationRecord, tmp_path: Path
) -> None:
    run = scan(model, tmp_path / "run").out
    with pytest.raises(UsageError, match="0.001 needs at least 999 clean prompts"):
        df.flag(run, record, fpr=0.001)
    with pytest.raises(UsageError, match="exclude each other"):
        df.flag(run, record, fpr=0.01, fdr=0.01)
    with pytest.raises(UsageError, match="over 0 and under 1"):
        df.flag(run, record, fdr=1.5)
    other = record.model_copy(update={"detector": {"name": "other"}})
    with pytest.raises(IntegrityError, match="calibration: made for other scores"):
        df.flag(run, other)
    with pytest.raises(UsageError, match="no run directory"):
        df.flag(tmp_path / "none", record)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "state": "interrupted"}))
    with pytest.raises(UsageError, match="is interrupted; run its command again to finish it"):
        df.flag(run, record)
    assert not (run / "decisions").exists()


def test_a_cascade_bounds_the_rates_that_can_be_decided(model: Any, tmp_path: Path) -> None:
    made = calibrate(
        model, [f"clean {i}" for i in range(40)], out=tmp_path / "c.json", seeds=2,
        suspicious=[f"a cat {i}" for i in range(20)],
    )  # fmt: skip
    high = float(np.quantile([np.mean(seeds) for seeds in made.suspicious], 0.3))
    low = [min(score, high - 1e-3) for score in made.scores]
    made = made.model_copy(update={"scores": low})
    prompts = [f"a house {i}" for i in range(12)]
    out = tmp_path / "run"
    found = df.scan(model, prompts, out=out, seeds=2, calibration=made, fpr=0.1, cascade=0.9)
    stopped = [row for row in found.rows() if len(row["score_per_seed"]) == 1]
    assert all(row["p_value"] is None and row["flagged"] is False for row in stopped)
    assert df.flag(out, made, fpr=0.05).rows == 12
    with pytest.raises(UsageError, match="cascade dropped rows .*; use a smaller rate"):
        df.flag(out, made, fpr=0.5)
    with pytest.raises(UsageError, match="give fpr, not fdr"):
        df.scan(model, prompts, out=tmp_path / "x", seeds=2, calibration=made, fdr=0.1, cascade=0.9)


def test_readers_see_the_newest_decision(
    model: Any, record: CalibrationRecord, tmp_path: Path
) -> None:
    run = scan(model, tmp_path / "run", calibration=record, fpr=0.01).out
    before = open_run(run)
    assert before.columns[-2:] == ("p_value", "flagged")
    df.flag(run, record, fpr=0.3)
    stored = open_run(run)
    (names,) = {tuple(table.column_names) for table in stored.tables("flagged", "row_id")}
    assert names == ("flagged", "row_id")
    flagged = [row for table in stored.tables("flagged") for row in table["flagged"].to_pylist()]
    assert sum(map(bool, flagged)) == stored.decision[1].flagged > before.decision[1].flagged
