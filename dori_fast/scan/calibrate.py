"""Calibration: what a detector gives clean prompts, so that scans can state error rates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate.calibration import Calibration
from dori_fast.evaluate.rates import Interval
from dori_fast.scan.durable import write_durably
from dori_fast.scan.read import file_sha256, open_prompts, prompts_on_disk
from dori_fast.scan.record import differences, library_versions, model_identity
from dori_fast.scan.score import score_rows
from dori_fast.scan.settings import SEEDS, STEPS, batch_size_of, checked, chosen_detector, limited

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

    @property
    def observed(self) -> Interval:
        """Share of the clean prompts above the threshold, with its Clopper-Pearson interval."""
        return self.calibration.false_positive_rate(self.rate)

    def config(self) -> dict[str, Any]:
        """What decisions depend on besides the scores, as plain JSON."""
        return {"calibration": self._sha256, "rate": self.rate}

    def columns(self, scores: list[float | None]) -> dict[str, list[Any]]:
        """``p_value`` and ``flagged`` of scores, None where there is none."""
        known = [score for score in scores if score is not None]
        p_values = iter(self.calibration.p_values(known).tolist() if known else [])
        return {
            "p_value": [None if score is None else next(p_values) for score in scores],
            "flagged": [
                None if score is None else bool(score > self.threshold) for score in scores
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
) -> CalibrationRecord:
    """Score a list of clean prompts and keep the scores as a yardstick for scans.

    The rates that a scan states hold if its clean prompts are like these (exchangeable): take
    them from the same source, without the training set's duplicates.

    Args:
        model, prompts, detector, seeds, steps, column, batch_size, limit: as in
            :func:`dori_fast.scan`.
        out: the calibration file to write, JSON.

    Raises:
        UsageError: wrong arguments, unusable input, or no prompt that can be scored.
        StorageError: the disk refused.
    """
    settings = checked("calibrate", seeds=seeds, steps=steps, batch_size=batch_size, limit=limit)
    chosen = chosen_detector(detector, settings)
    with prompts_on_disk(prompts) as path, batch_size_of(model, settings):
        scores: dict[str, float] = {}
        rows = quarantined = 0
        for chunk in limited(open_prompts(path, column), settings):
            table = score_rows(model, chosen, chunk, lambda done: None)
            rows += len(table)
            for prompt, score in zip(
                table["prompt"].to_pylist(), table["score"].to_pylist(), strict=True
            ):
                if score is None:
                    quarantined += 1
                else:
                    scores.setdefault(prompt, score)
        if not scores:
            raise UsageError(f"calibrate: none of {rows} rows of {path} could be scored")
        record = CalibrationRecord(
            detector=chosen.config(),
            model=model_identity(model.describe()),
            input_sha256=file_sha256(path),
            rows=rows,
            quarantined=quarantined,
            repeated=rows - quarantined - len(scores),
            versions=library_versions(),
            scores=list(scores.values()),
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_durably(Path(out), record.write)
    return record
