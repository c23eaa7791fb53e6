"""Calibration: what a detector gives clean prompts, so that scans can state error rates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate.calibration import Calibration
from dori_fast.evaluate.rates import Interval
from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.settings import (
    SEEDS,
    STEPS,
    Settings,
    batch_size_of,
    checked,
    chosen_detector,
    limited,
)
from dori_fast.runs.sources.open import input_sha256, open_prompts, prompts_on_disk
from dori_fast.runs.sources.read_ahead import read_ahead
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.record import differences, library_versions, model_identity

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser


class CalibrationRecord(BaseModel):
    """The content of a calibration file, JSON.

    Attributes:
        made: when, UTC.
        detector, model: what the scores depend on; a scan must have the same.
        input_sha256: of the clean prompt list.
        rows: rows read; ``quarantined`` of them could not be scored and ``repeated`` ones had an
            earlier row's prompt: a prompt counts once, or the sample would look larger than it is.
        scores: of the distinct clean prompts, float32 values in the input's order.
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

    @classmethod
    def read(cls, path: str | Path) -> CalibrationRecord:
        """Read a calibration file.

        Raises:
            UsageError: no such file.
            IntegrityError: not a calibration file of this version.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror} — check the calibration's path") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(
                f"{path}: no calibration file, or another version's — run dori-fast calibrate"
            ) from error

    def write(self, path: Path) -> None:
        """Write the file, not yet durably."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @cached_property
    def sha256(self) -> str:
        """Of what decisions depend on."""
        return hashlib.sha256(self.model_dump_json(include={"scores"}).encode()).hexdigest()

    def check(self, detector: dict[str, Any], model: dict[str, Any]) -> None:
        """Raises IntegrityError if a scan's scores are not comparable with these."""
        here = {"detector": detector, "model": model_identity(model)}
        there = {"detector": self.detector, "model": self.model}
        if here != there:
            raise IntegrityError(
                f"calibration: made for other scores ({differences(there, here)})"
                " — calibrate with the scan's own model, detector and dtype"
            )


class Decision:
    """p-values and decisions of a scan at a wanted false-positive rate.

    Args:
        record: what the scores are compared with.
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
        """What decisions depend on besides the scores, as plain JSON."""
        return {"calibration": self._sha256, "rate": self.rate}

    def summary(self) -> dict[str, Any]:
        """What a run record says about them."""
        seen = self.observed
        return {
            "threshold": self.threshold,
            "observed": (seen.value, seen.low, seen.high),
            "clean_prompts": len(self.calibration.scores),
        }

    def columns(self, scores: list[float | None], stopped: list[bool]) -> dict[str, list[Any]]:
        """``p_value`` and ``flagged`` of scores, None where there is none.

        A prompt that a cascade stopped is not flagged and has no p-value: its score is of fewer
        seeds than the clean ones'.
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


def calibrate(
    model: Denoiser,
    prompts: str | Path | Iterable[object],
    *,
    out: str | Path,
    detector: str | Detector = "wen",
    seeds: int = SEEDS,
    steps: int = STEPS,
    column: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    limit: int | None = None,
    suspicious: str | Path | Iterable[object] | None = None,
) -> CalibrationRecord:
    """Score a list of clean prompts and keep the scores as a yardstick for scans.

    The rates that a scan states hold if its clean prompts are like these (exchangeable): take
    them from the same source, without the training set's duplicates.

    Args:
        model, prompts, detector, seeds, steps, column, batch_size, limit: as in
            :func:`dori_fast.scan`.
        out: the calibration file to write, JSON.
        suspicious: memorized prompts, for scans that stop early (``cascade``); the share that
            such a scan states to keep is of prompts like these.

    Raises:
        UsageError: wrong arguments, unusable input, or no prompt that can be scored.
        StorageError: the disk refused.
    """
    settings = checked("calibrate", seeds=seeds, steps=steps, batch_size=batch_size, limit=limit)
    chosen = chosen_detector(detector, settings)
    with batch_size_of(model, settings):
        clean = _scores(model, chosen, prompts, column, settings)
        memorized = _scores(model, chosen, suspicious or [], column, settings)
    if not clean.per_seed:
        raise UsageError(f"calibrate: none of {clean.rows} rows of {prompts} could be scored")
    record = CalibrationRecord(
        detector=chosen.config(),
        model=model_identity(model.config()),
        input_sha256=clean.sha256,
        rows=clean.rows,
        quarantined=clean.quarantined,
        repeated=clean.rows - clean.quarantined - len(clean.per_seed),
        versions=library_versions(),
        scores=[score for score, _ in clean.per_seed.values()],
        suspicious=[seeds for _, seeds in memorized.per_seed.values()],
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_durably(Path(out), record.write)
    return record


@dataclass
class _Scored:
    sha256: str
    rows: int
    quarantined: int
    per_seed: dict[str, tuple[float, list[float]]]


def _scores(
    model: Denoiser,
    detector: Detector,
    prompts: str | Path | Iterable[object],
    column: str | None,
    settings: Settings,
) -> _Scored:
    """Scores of the distinct prompts of an input."""
    with (
        prompts_on_disk(prompts) as path,
        read_ahead(limited(open_prompts(path, column), settings)) as chunks,
    ):
        found = _Scored(input_sha256(path), 0, 0, {})
        for chunk in chunks:
            table = score_rows(model, detector, chunk, lambda done: None)
            found.rows += len(table)
            columns = (table[name].to_pylist() for name in ("prompt", "score", "score_per_seed"))
            for prompt, score, per_seed in zip(*columns, strict=True):
                if score is None:
                    found.quarantined += 1
                else:
                    found.per_seed.setdefault(prompt, (score, per_seed))
    return found
