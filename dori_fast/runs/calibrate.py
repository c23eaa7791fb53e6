"""Calibration: a detector's scores of clean prompts, so that scans can state error rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, UsageError
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
from dori_fast.runs.sources.rows import limited
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.durable import write_text_durably
from dori_fast.runs.store.record import differences, library_versions, model_identity

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
    suspicious: str | Path | Iterable[object] | None = None,
) -> CalibrationRecord:
    """Score clean prompts and save the scores, so that scans can compare theirs with them.

    The error rates of a scan hold if its clean prompts are exchangeable with these: take them
    from the same source, without the training set's duplicates.

    Args:
        model, prompts, detector, seeds, steps, units, column, header, batch_size, limit: as in
            :func:`dori_fast.scan`.
        out: calibration file to write, JSON.
        suspicious: memorized prompts, for scans that stop early (``cascade``). Such a scan keeps
            its stated share of prompts like these.

    Raises:
        UsageError: wrong arguments, unusable input, or no prompt that can be scored.
        StorageError: the disk refused.
    """
    settings = checked(
        "calibrate", seeds=seeds, steps=steps, units=units, batch_size=batch_size, limit=limit
    )
    chosen = chosen_detector(detector, settings)
    with prepared(model, settings):
        clean = _scores(model, chosen, prompts, column, header, settings)
        memorized = _Scored("", 0, 0, {})
        if suspicious is not None:
            memorized = _scores(model, chosen, suspicious, column, header, settings)
    if not clean.per_seed:
        raise UsageError(
            f"calibrate: none of {clean.rows} rows of {described(prompts)} could be scored"
        )
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


@dataclass
class _Scored:
    """Scores of the distinct prompts of an input: (score, score per seed) by prompt."""

    sha256: str
    rows: int
    quarantined: int
    per_seed: dict[str, tuple[float, list[float]]]


def _scores(
    model: Denoiser,
    detector: Detector,
    prompts: str | Path | Iterable[object],
    column: str | None,
    header: bool | None,
    settings: Settings,
) -> _Scored:
    with (
        prompts_on_disk(prompts) as path,
        read_ahead(
            limited(
                open_prompts(path, column, Selection.of(header=header)),
                settings.shard_size,
                settings.limit,
            )
        ) as chunks,
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
