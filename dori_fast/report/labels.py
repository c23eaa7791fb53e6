"""The scores of a scan, read once: how many, which are highest, whose are memorized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.report.load import SHOWN, Run

POSITIVE = ("1", "true", "yes", "memorized")
# the false-positive rate at which hits are counted
FALSE_RATE = 0.01


@dataclass(frozen=True)
class Labels:
    """Which rows are known to be memorized.

    Attributes:
        column: of the input, kept in the rows.
        positive: its values, as text in lower case, that mean memorized; rows with another value
            are not, rows with none are left out.
    """

    column: str
    positive: Collection[str] = POSITIVE


@dataclass
class Seen:
    """What one pass over the rows keeps.

    Raises:
        UsageError: no such column of labels.
    """

    run: Run
    top: int
    labels: Labels | None
    scores: list[NDArray[np.float64]] = field(default_factory=list)
    marks: list[NDArray[np.int8]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unfit_rows: list[tuple[int, str]] = field(default_factory=list)
    values: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    truncated: int = 0

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.column not in self.run.columns:
            raise UsageError(
                f"labels: the rows have no column {self.labels.column!r} — name one of"
                f" {', '.join(self.run.columns)}"
            )
        wanted = ["row_id", "prompt", "error", "score", "score_per_seed", "n_tokens", "truncated"]
        wanted += [name for name in ("p_value", "flagged") if name in self.run.columns]
        wanted += [self.labels.column] if self.labels else []
        for part in self.run.tables(*dict.fromkeys(wanted)):
            self._take(part)

    @property
    def unfit(self) -> int:
        return sum(self.reasons.values())

    def group(self, mark: int) -> NDArray[np.float64]:
        """Scores of memorized (1), other (0) or unlabeled (-1) rows."""
        scores, marks = np.concatenate(self.scores), np.concatenate(self.marks)
        return scores[marks == mark]

    def separated(self, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of the memorized rows, and of the others, by the labels of this pass.

        Raises:
            UsageError: there are not both kinds of rows.
        """
        memorized, others = self.group(1), self.group(0)
        if not len(memorized) or not len(others):
            values = ", ".join(f"{value} ({count})" for value, count in self.values.most_common(8))
            raise UsageError(
                f"labels: column {labels.column!r} has {len(memorized)} memorized rows and"
                f" {len(others)} others with a score, needs both; its values are {values or 'none'}"
                " — say with --positive which of them mean memorized"
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
        # stable: among equals the earlier row first
        order = usable[np.argsort(-score[usable], kind="stable")][: self.top]
        rows = [*self.best, *part.take(pa.array(order, pa.int64())).to_pylist()]
        self.best = sorted(rows, key=lambda row: (-row["score"], row["row_id"]))[: self.top]
        for row_id, error in zip(*(part[n].to_pylist() for n in ("row_id", "error")), strict=True):
            if error is not None:
                self.reasons[error.split(":")[0]] += 1
                if len(self.unfit_rows) < SHOWN:
                    self.unfit_rows.append((row_id, error))

    def _marks(self, part: pa.Table) -> NDArray[np.int8]:
        if self.labels is None:
            return np.full(len(part), -1, np.int8)
        values = part[self.labels.column].to_pylist()
        # a CSV has no other way to say that a row has no label than an empty cell
        texts = [None if v is None else str(v).strip().lower() or None for v in values]
        self.values.update(text for text in texts if text is not None)
        positive = self.labels.positive
        return np.array([-1 if t is None else int(t in positive) for t in texts], np.int8)
