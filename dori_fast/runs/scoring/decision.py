"""Decisions: which rows to flag, from the scores of clean prompts and a wanted error rate.

A decision is arithmetic on stored scores: it needs the number of rows at each rank among the clean
scores (see :mod:`dori_fast.evaluate.discoveries`), so it depends on neither order nor shards.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from dori_fast.errors import UsageError
from dori_fast.evaluate.calibration import Calibration
from dori_fast.evaluate.discoveries import Counts, Variant, discoveries
from dori_fast.evaluate.rates import Interval, clopper_pearson


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

    def facts(self) -> dict[str, Any]:
        """Its hashes, time and size, as plain JSON."""
        text = self.model_dump_json(indent=1)
        return {
            "scores_sha256": self.sha256,
            "file_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "made": self.made,
            "input_sha256": self.input_sha256,
            "rows": self.rows,
        }


FPR = 0.01
"""The false-positive rate of a decision without a wanted rate."""


@dataclass(frozen=True)
class Rule:
    """A wanted error rate.

    Attributes:
        kind: ``"fpr"``, the share of clean prompts that may be flagged; or ``"fdr"``, the expected
            share of clean prompts among the flagged rows.
        rate: the rate, over 0 and under 1.
        variant: procedure of a false discovery rate, ``"bh"`` or ``"by"``.
    """

    kind: Literal["fpr", "fdr"]
    rate: float
    variant: Variant = "bh"

    @classmethod
    def of(cls, fpr: float | None, fdr: float | None, variant: Variant) -> Rule:
        """The rule of two arguments, of which at most one is given."""
        if fpr is not None and fdr is not None:
            raise UsageError("a false-positive rate and a false discovery rate exclude each other")
        if fdr is None:
            return cls("fpr", FPR if fpr is None else fpr)
        if not 0 < fdr < 1:
            raise UsageError(f"the false discovery rate must be over 0 and under 1, got {fdr}")
        if variant not in ("bh", "by"):
            raise UsageError(f"the procedure must be 'bh' or 'by', got {variant!r}")
        return cls("fdr", fdr, variant)

    def config(self) -> dict[str, Any]:
        """Plain JSON."""
        procedure = {"variant": self.variant} if self.kind == "fdr" else {}
        return {"kind": self.kind, "rate": self.rate, **procedure}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a rule.

    Attributes:
        rank: rows of this rank among the clean scores, or a smaller one, are flagged; 0: none.
        threshold: score above which a row is flagged; Inf if none is, -Inf if all are.
        rows: rows with a score.
        flagged: flagged rows.
        expected_false: flagged rows that are expected by chance. By a false-positive rate, if no
            row were memorized; by a false discovery rate, the bound on their expected number.
    """

    rank: int
    threshold: float
    rows: int
    flagged: int
    expected_false: float


class Decision:
    """p-values and flags of rows by a rule.

    Args:
        record: calibration that scores are compared with.
        rule: wanted error rate.

    Raises:
        UsageError: the sample is too small for a false-positive rate.
    """

    def __init__(self, record: CalibrationRecord, rule: Rule) -> None:
        self.record, self.rule = record, rule
        self.calibration = Calibration(record.scores)
        if rule.kind == "fpr":
            self.calibration.threshold(rule.rate)

    @property
    def clean(self) -> int:
        """Number of clean prompts."""
        return len(self.calibration.scores)

    def ranks(self, scores: ArrayLike, stopped: ArrayLike) -> NDArray[np.int64]:
        """Ranks 1..n + 1 of N scores among n clean ones; 0 where the score is NaN.

        A row that a cascade stopped has rank n + 1: its score is a mean over fewer seeds than
        those of the clean prompts, so it is never flagged.
        """
        p_values = self.calibration.p_values(scores)
        found = np.nan_to_num(p_values * (self.clean + 1)).round().astype(np.int64)
        return np.where((found > 0) & np.asarray(stopped, bool), self.clean + 1, found)

    def counts(self, ranks: NDArray[np.int64]) -> Counts:
        """Number of rows at each rank 1..n + 1, [n + 1]."""
        found: Counts = np.bincount(ranks, minlength=self.clean + 2)[1:]
        return found

    def verdict(self, counts: Counts) -> Verdict:
        """The outcome for a run with so many rows at each rank."""
        rows = int(counts.sum())
        if self.rule.kind == "fpr":
            # the largest rank whose p-value is at most the rate
            rank = math.floor(self.rule.rate * (self.clean + 1) * (1 + 1e-12))
            flagged, expected = int(counts[:rank].sum()), rows * rank / (self.clean + 1)
            return Verdict(rank, self._threshold(rank), rows, flagged, expected)
        found = discoveries(counts, self.rule.rate, self.rule.variant)
        return Verdict(
            found.rank, self._threshold(found.rank), rows, found.flagged, found.expected_false
        )

    def _threshold(self, rank: int) -> float:
        """The score above which the rank is at most ``rank``."""
        if rank == 0:
            return math.inf
        return -math.inf if rank > self.clean else float(self.calibration.scores[-rank])

    def observed(self, verdict: Verdict) -> Interval:
        """Share of the clean prompts above the threshold, with its Clopper-Pearson interval."""
        above = int((self.calibration.scores > verdict.threshold).sum())
        return clopper_pearson(above, self.clean)
