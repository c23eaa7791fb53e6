"""Calibration: a detector's scores of clean prompts, so that scans can state error rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.budget import MAX_ERRORS, Failure, require_rows, require_within
from dori_fast.runs.scoring.decision import CalibrationRecord
from dori_fast.runs.scoring.score import score_rows
from dori_fast.runs.settings import (
    SEEDS,
    STEPS,
    Settings,
    Units,
    checked,
    chosen_detector,
    prepared,
)
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import input_sha256, open_prompts, prompts_on_disk
from dori_fast.runs.sources.read_ahead import read_ahead
from dori_fast.runs.sources.rows import Reader, limited
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.durable import write_text_durably
from dori_fast.runs.store.record import Counts, differences, library_versions, model_identity

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser


def calibrate(
    model: Denoiser,
    prompts: str | Path | Iterable[object],
    *,
    out: str | Path,
    detector: str | Detector = "wen",
    seeds: int = SEEDS,
    steps: int = STEPS,
    units: Units = "epsilon",
    column: str | None = None,
    header: bool | None = None,
    batch_size: int | Literal["auto"] = "auto",
    limit: int | None = None,
    max_errors: float = MAX_ERRORS,
    suspicious: str | Path | Iterable[object] | None = None,
) -> CalibrationRecord:
    """Score clean prompts and save the scores, so that scans can compare theirs with them.

    The error rates of a scan hold if its clean prompts are exchangeable with these: take them
    from the same source, without the training set's duplicates.

    Args:
        model, prompts, detector, seeds, steps, units, column, header, batch_size, limit: as in
            :func:`dori_fast.scan`.
        out: calibration file to write, JSON.
        max_errors: allowed rows without a score, of each input: a fraction if below 1, else a
            number of rows.
        suspicious: memorized prompts, for scans that stop early (``cascade``). Such a scan keeps
            its stated share of prompts like these.

    Raises:
        UsageError: wrong arguments, or an input that is unusable or has no rows.
        OverBudgetError: more rows failed than allowed; nothing is written.
        StorageError: the disk refused.
    """
    settings = checked(
        "calibrate",
        seeds=seeds,
        steps=steps,
        units=units,
        batch_size=batch_size,
        limit=limit,
        max_errors=max_errors,
    )
    chosen = chosen_detector(detector, settings)
    with prepared(model, settings):
        # the shorter list first: a bad one then costs less
        memorized = None
        if suspicious is not None:
            memorized = _scores(model, chosen, suspicious, column, header, settings)
        clean = _scores(model, chosen, prompts, column, header, settings)
    record = CalibrationRecord(
        detector=chosen.config(),
        model=model_identity(model.config()),
        input_sha256=clean.sha256,
        rows=clean.counts.rows,
        quarantined=clean.counts.quarantined,
        repeated=clean.counts.ok - len(clean.per_seed),
        versions=library_versions(),
        scores=[score for score, _ in clean.per_seed.values()],
        suspicious=[seeds for _, seeds in memorized.per_seed.values()] if memorized else [],
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_text_durably(Path(out), record.model_dump_json(indent=1))
    return record


def read_calibration(path: str | Path) -> CalibrationRecord:
    """Read a calibration file.

    Raises:
        UsageError: no such file.
        IntegrityError: not a calibration file of this version.
    """
    try:
        return CalibrationRecord.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; check the calibration's path") from error
    except (ValidationError, UnicodeDecodeError) as error:
        if reason := read_stand_in(path):
            raise IntegrityError(f"{path}: {reason}") from error
        raise IntegrityError(
            f"{path}: no calibration file, or another version's; run dori-fast calibrate"
        ) from error


def check_comparable(
    record: CalibrationRecord, detector: dict[str, Any], model: dict[str, Any]
) -> None:
    """Raises IntegrityError if a scan by this detector and model has other scores."""
    here = {"detector": detector, "model": model_identity(model)}
    there = {"detector": record.detector, "model": record.model}
    if here != there:
        raise IntegrityError(
            f"calibration: made for other scores ({differences(there, here)});"
            " calibrate with the scan's own model, detector and dtype"
        )


_SCORED = ["row_id", "prompt", "error", "score", "score_per_seed"]


@dataclass
class _Scored:
    """Scores of the distinct prompts of an input: (score, score per seed) by prompt."""

    sha256: str
    counts: Counts
    per_seed: dict[str, tuple[float, list[float]]]


def _scores(
    model: Denoiser,
    detector: Detector,
    prompts: str | Path | Iterable[object],
    column: str | None,
    header: bool | None,
    settings: Settings,
) -> _Scored:
    where = described(prompts)
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, column, Selection.of(header=header))
        require_rows(reader, where)
        _check_prompts(reader, where, settings)
        found = _Scored(input_sha256(path), Counts(), {})
        first: Failure | None = None
        with read_ahead(limited(reader, settings.shard_size, settings.limit)) as chunks:
            for chunk in chunks:
                table = score_rows(model, detector, chunk, lambda done: None)
                for row in table.select(_SCORED).to_pylist():
                    found.counts.add(1, row["error"] is not None)
                    if row["error"] is None:
                        scores = row["score"], row["score_per_seed"]
                        found.per_seed.setdefault(row["prompt"], scores)
                    else:
                        first = first or (row["row_id"], row["error"])
    require_within(where, found.counts, settings.max_errors, first)
    if not found.per_seed:
        raise UsageError(f"calibrate: none of {found.counts.rows} rows of {where} could be scored")
    return found


def _check_prompts(reader: Reader, where: str | Path, settings: Settings) -> None:
    """Check the budget by the rows without a prompt, before minutes of scoring."""
    counts, first = Counts(), None
    for rows in limited(reader, settings.shard_size, settings.limit):
        bad = [i for i, error in enumerate(rows.errors) if error is not None]
        counts.add(len(rows), len(bad))
        if bad and first is None:
            first = rows.first + bad[0], rows.errors[bad[0]] or ""
    require_within(where, counts, settings.max_errors, first)
