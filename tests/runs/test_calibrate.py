"""Calibration files: which rows count, refusals, and the decisions of scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
