"""Decisions: p-values and flags of scores, from the scores of clean prompts."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dori_fast.evaluate.calibration import Calibration
from dori_fast.evaluate.rates import Interval


class CalibrationRecord(BaseModel):
    """The content of a calibration file, JSON.

    Attributes:
        made: time of the calibration, UTC.
        detector, model: config() of both; a scan must have the same.
        input_sha256: sha256 of the clean prompts' input.
        rows: number of rows read.
        quarantined: rows among them that could not be scored.
        repeated: rows among them with the prompt of an earlier row. A prompt counts once, since
            otherwise the sample would look larger than it is.
        scores: scores of the distinct clean prompts, float32 values in the input's order.
        suspicious: scores per seed of distinct memorized prompts, if some were given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    made: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    detector: dict[str, Any]
    model: dict[str, Any]
    input_sha256: str
    rows: int
    quarantined: int
    repeated: int
    versions: dict[str, str]
    scores: list[float]
    suspicious: list[list[float]] = []

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the clean scores, on which decisions depend."""
        return hashlib.sha256(self.model_dump_json(include={"scores"}).encode()).hexdigest()


class Decision:
    """p-values and flags of a scan at a wanted false-positive rate.

    Args:
        record: calibration that scores are compared with.
        rate: wanted share of clean prompts to be flagged, 0..1.

    Raises:
        UsageError: the sample is too small for the rate.
    """

    def __init__(self, record: CalibrationRecord, rate: float) -> None:
        self.calibration = Calibration(record.scores)
        self.threshold = self.calibration.threshold(rate)
        self.rate, self._sha256 = rate, record.sha256
        self.suspicious = record.suspicious or np.empty((0, 2))

    @property
    def observed(self) -> Interval:
        """Share of the clean prompts above the threshold, with its Clopper-Pearson interval."""
        return self.calibration.false_positive_rate(self.rate)

    def config(self) -> dict[str, Any]:
        """Everything that decisions depend on besides the scores, as plain JSON."""
        return {"calibration": self._sha256, "rate": self.rate}

    def summary(self) -> dict[str, Any]:
        """The fields of a run record about decisions."""
        seen = self.observed
        return {
            "threshold": self.threshold,
            "observed": (seen.value, seen.low, seen.high),
            "clean_prompts": len(self.calibration.scores),
        }

    def columns(self, scores: list[float | None], stopped: list[bool]) -> dict[str, list[Any]]:
        """``p_value`` and ``flagged`` of N scores; None where there is no score.

        A prompt that a cascade stopped is not flagged and has no p-value: its score is a mean over
        fewer seeds than those of the clean prompts.
        """
        p_values = self.calibration.p_values([np.nan if s is None else s for s in scores]).tolist()
        flagged = [s is not None and s > self.threshold for s in scores]
        return {
            "p_value": [
                None if s is None or early else p
                for s, early, p in zip(scores, stopped, p_values, strict=True)
            ],
            "flagged": [
                None if s is None else above and not early
                for s, early, above in zip(scores, stopped, flagged, strict=True)
            ],
        }
