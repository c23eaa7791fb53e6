"""Calibration files: which rows count, refusals, and the decisions of scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.calibrate import calibrate, read_calibration
from dori_fast.runs.errors import OverBudgetError
from dori_fast.runs.scoring.decision import CalibrationRecord
from tests.runs.scanning import Spelling

CLEAN = [f"a cat number {i} {'x' * (i % 40)}" for i in range(120)]


@pytest.fixture
def record(model: Any, tmp_path: Path) -> CalibrationRecord:
    return calibrate(model, [*CLEAN, CLEAN[0], None], out=tmp_path / "c.json", detector=Spelling())


def test_repeated_and_unusable_prompts_do_not_count(record: CalibrationRecord, tmp_path: Path):
    assert (record.rows, record.repeated, record.quarantined) == (122, 1, 1)
    assert len(record.scores) == 120
    assert read_calibration(tmp_path / "c.json") == record


def test_decisions_are_those_of_the_sample(model: Any, record: CalibrationRecord, tmp_path: Path):
    prompts = ["a", "b" * 200, None, *CLEAN[:5]]
    result = df.scan(
        model, prompts, out=tmp_path / "run", detector=Spelling(), calibration=record, fpr=0.02,
        max_errors=2,
    )  # fmt: skip
    rows = list(result.rows())
    for row in rows:
        if row["score"] is None:
            assert row["p_value"] is None and row["flagged"] is None
            continue
        higher = sum(score >= row["score"] for score in record.scores)
        assert row["p_value"] == pytest.approx((1 + higher) / 121, rel=1e-12)
        assert row["flagged"] == (row["p_value"] <= 0.02)
    assert [row["flagged"] for row in rows][:3] == [False, True, None]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["threshold"] == result.decision.threshold
    assert result.top(1)[0]["flagged"] is True


def test_another_calibration_is_another_run(model: Any, record: Any, tmp_path: Path):
    def scan(fpr: float) -> Any:
        return df.scan(
            model, CLEAN[:3], out=tmp_path / "run", detector=Spelling(), calibration=record, fpr=fpr
        )

    scan(0.02)
    with pytest.raises(IntegrityError, match=r"decision.rate: 0.02 then, 0.05 now"):
        scan(0.05)


def test_rates_that_the_sample_cannot_support_are_refused(model: Any, record: Any, tmp_path: Path):
    with pytest.raises(UsageError, match="0.001 needs at least 999 clean prompts"):
        df.scan(
            model, ["a"], out=tmp_path / "r", detector=Spelling(), calibration=record, fpr=0.001
        )
    assert not (tmp_path / "r").exists()


def test_scores_of_another_detector_are_refused(model: Any, record: Any, tmp_path: Path):
    with pytest.raises(IntegrityError, match="detector.name"):
        df.scan(model, ["a"], out=tmp_path / "r", detector="wen", calibration=record)


def test_a_rate_without_a_calibration_is_refused(model: Any, tmp_path: Path):
    with pytest.raises(UsageError, match="needs a calibration"):
        df.scan(model, ["a"], out=tmp_path / "r", detector=Spelling(), fpr=0.5)


def test_no_usable_prompt_or_file_is_refused(model: Any, tmp_path: Path):
    with pytest.raises(OverBudgetError, match="1 of 1 rows failed, the first: row 0: null"):
        calibrate(model, [None], out=tmp_path / "c.json", detector=Spelling(), max_errors=9)
    with pytest.raises(UsageError, match="the input has no rows"):
        calibrate(model, [], out=tmp_path / "c.json", detector=Spelling())
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(IntegrityError, match="no calibration file"):
        read_calibration(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="check the calibration"):
        read_calibration(tmp_path / "none.json")


def test_a_calibration_over_its_budget_writes_nothing(model: Any, tmp_path: Path):
    out = tmp_path / "c.json"

    def made(prompts: list[Any], **how: Any) -> CalibrationRecord:
        return calibrate(model, prompts, out=out, detector=Spelling(bad="bad"), **how)

    # without a prompt: known before anything is scored; without a score: afterwards
    for bad, reason in ((None, "null"), ("bad", "nonfinite")):
        with pytest.raises(OverBudgetError, match=f"1 of 5 rows failed, .*: row 4: {reason}"):
            made([*CLEAN[:4], bad])
        with pytest.raises(OverBudgetError, match="1 of 2 rows failed"):
            made(CLEAN[:4], suspicious=["a", bad])
        assert not out.exists()
    assert made([*CLEAN[:4], None], max_errors=0.2).quarantined == 1


def test_flagged_share_of_new_clean_prompts_is_the_wanted_one(model: Any, tmp_path: Path):
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[str]:
        return ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 60)))) for _ in range(n)]

    made = calibrate(model, draw(2000), out=tmp_path / "c.json", detector=Spelling())
    result = df.scan(
        model, draw(2000), out=tmp_path / "r", detector=Spelling(), calibration=made, fpr=0.05
    )
    flagged = sum(row["flagged"] for row in result.rows("flagged"))
    assert 60 <= flagged <= 145  # 100 expected, four standard deviations of the two samples
