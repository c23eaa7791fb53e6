"""Scores of a scan read in one pass, with the labels of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.report.load import Run

POSITIVE = ("1", "true", "yes", "memorized")
# the false-positive rate at which hits are counted
FALSE_RATE = 0.01
# quarantined rows to keep; the rest is counted
_KEPT = 100


@dataclass(frozen=True)
class Labels:
    """Rows known to be memorized.

    Attributes:
        column: Column of the input, kept in the rows.
        positive: Values of this column, as lower-case text, that mean memorized. Rows with another
            value are not memorized; rows without a value are left out.
    """

    column: str
    positive: Collection[str] = POSITIVE


@dataclass
class Scores:
    """Scores, labels, top rows and quarantined rows of a run.

    Args:
        run: The scan.
        top: Number of highest-scored rows to keep.
        labels: Labels of rows, if any.

    Raises:
        UsageError: the column of labels is missing.
    """

    run: Run
    top: int
    labels: Labels | None
    scores: list[NDArray[np.float64]] = field(default_factory=list)
    marks: list[NDArray[np.int8]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    quarantined_rows: list[tuple[int, str]] = field(default_factory=list)
    values: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    truncated: int = 0

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.column not in self.run.columns:
            raise UsageError(
                f"labels: the rows have no column {self.labels.column!r}; use one of"
                f" {', '.join(self.run.columns)}"
            )
        wanted = ["row_id", "prompt", "error", "score", "score_per_seed", "n_tokens", "truncated"]
        wanted += [name for name in ("p_value", "flagged") if name in self.run.columns]
        wanted += [self.labels.column] if self.labels else []
        for part in self.run.tables(*dict.fromkeys(wanted)):
            self._take(part)

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    def group(self, mark: int) -> NDArray[np.float64]:
        """Scores of memorized (1), other (0) or unlabeled (-1) rows."""
        scores, marks = np.concatenate(self.scores), np.concatenate(self.marks)
        return scores[marks == mark]

    def separated(self, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of the memorized rows, and of the other labeled rows.

        Raises:
            UsageError: one of the two kinds has no scored row.
        """
        memorized, others = self.group(1), self.group(0)
        if not len(memorized) or not len(others):
            values = ", ".join(f"{value} ({count})" for value, count in self.values.most_common(8))
            raise UsageError(
                f"labels: column {labels.column!r} has {len(memorized)} memorized rows and"
                f" {len(others)} others with a score, but both are needed; its values are"
                f" {values or 'none'}; name those that mean memorized with --positive"
            )
        return memorized, others

    def _take(self, part: pa.Table) -> None:
        score = part["score"].to_numpy().astype(np.float64)
        usable = np.flatnonzero(~np.isnan(score))
        self.scores.append(score[usable])
        self.marks.append(self._marks(part)[usable])
        self.truncated += sum(map(bool, part["truncated"].to_pylist()))
        if "flagged" in part.column_names:
            self.flagged += sum(map(bool, part["flagged"].to_pylist()))
        # stable: of equal scores the earlier row comes first
        order = usable[np.argsort(-score[usable], kind="stable")][: self.top]
        rows = [*self.best, *part.take(pa.array(order, pa.int64())).to_pylist()]
        self.best = sorted(rows, key=lambda row: (-row["score"], row["row_id"]))[: self.top]
        for row_id, error in zip(*(part[n].to_pylist() for n in ("row_id", "error")), strict=True):
            if error is not None:
                self.reasons[error.split(":")[0]] += 1
                if len(self.quarantined_rows) < _KEPT:
                    self.quarantined_rows.append((row_id, error))

    def _marks(self, part: pa.Table) -> NDArray[np.int8]:
        if self.labels is None:
            return np.full(len(part), -1, np.int8)
        values = part[self.labels.column].to_pylist()
        # an empty cell is how a CSV marks a row without a label
        texts = [None if v is None else str(v).strip().lower() or None for v in values]
        self.values.update(text for text in texts if text is not None)
        positive = self.labels.positive
        return np.array([-1 if t is None else int(t in positive) for t in texts], np.int8)
