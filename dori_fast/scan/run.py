"""The scan: read, score, commit, resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from dori_fast.errors import UsageError
from dori_fast.evaluate.futility import futility_bound
from dori_fast.scan.ahead import read_ahead
from dori_fast.scan.calibrate import CalibrationRecord, Decision
from dori_fast.scan.machine import device_name
from dori_fast.scan.read import file_sha256, open_prompts, prompts_on_disk
from dori_fast.scan.record import (
    Counts,
    RunRecord,
    hash_identity,
    library_versions,
    make_identity,
)
from dori_fast.scan.result import ScanResult
from dori_fast.scan.rows import Reader, Rows
from dori_fast.scan.run_directory import Resume, RunDirectory
from dori_fast.scan.score import score_rows, shard_schema
from dori_fast.scan.settings import (
    FPR,
    SEEDS,
    STEPS,
    Settings,
    batch_size_of,
    checked,
    chosen_detector,
    limited,
)
from dori_fast.scan.signals import Interrupts, interruptible

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser


@dataclass(frozen=True)
class Progress:
    """How far a scan is.

    Attributes:
        rows: rows of the input that are done, those of earlier calls included.
        quarantined: those of them that are quarantined, up to the last finished shard.
        scored: rows done by this call.
        seconds: time of this call.
        remaining: estimated seconds to the end, None as long as nothing has been scored.
    """

    rows: int
    quarantined: int
    scored: int
    seconds: float
    remaining: float | None

    @property
    def rate(self) -> float:
        """Rows per second of this call."""
        return self.scored / self.seconds if self.seconds > 0 else 0.0


def scan(
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
    resume: Resume = "auto",
    max_errors: float = 0.01,
    shard_size: int = 2048,
    calibration: str | Path | CalibrationRecord | None = None,
    fpr: float = FPR,
    cascade: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ScanResult:
    """Score every prompt of an input into a run directory, in constant memory.

    Every input row gets one output row, at most ``shard_size`` rows of work are lost by a crash,
    and the same call finishes an interrupted run. Rows that cannot be scored (no prompt, not
    text, invalid UTF-8, over 1 MB, malformed, non-finite score) are quarantined with the reason.

    Args:
        model: from :func:`dori_fast.load`.
        prompts: a .txt, .csv, .tsv, .jsonl or .parquet file, or an iterable of str.
        out: the run directory, made if need be.
        detector: a name (with ``seeds`` and ``steps``), or a detector object.
        seeds: number of noise seeds, shared by all prompts.
        steps: number of denoising steps that are scored.
        column: the prompt column; found by itself if it has a usual name.
        batch_size: UNet samples per evaluation; "auto" keeps the model's.
        limit: read only the first rows.
        resume: "auto" continues what is there, "never" wants a fresh directory, "must" an
            earlier run.
        max_errors: quarantined rows allowed: a fraction if below 1, else a number of rows.
        shard_size: rows per shard.
        calibration: from :func:`dori_fast.scan.calibrate` with the same model and detector; the
            rows then have a ``p_value`` and are ``flagged`` or not.
        fpr: wanted share of clean prompts to be flagged.
        cascade: approximate and faster: give up early on prompts that the full test would hardly
            flag, keeping at least this share of those that it would (needs a calibration with
            memorized prompts). Kept rows have the full test's score; given-up ones the mean over
            the seeds that they got, no ``p_value``, and are not ``flagged``.
        on_progress: called about once a second.

    Raises:
        UsageError: wrong arguments, unusable input or output, or another writer.
        IntegrityError: ``out`` holds a run with another configuration, model or input, or the
            calibration is another model's or detector's.
        StorageError: the disk refused a write; the same call continues later.
        ScanInterrupted: SIGINT or SIGTERM; the same call continues later.
    """
    settings = checked(
        "scan",
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        limit=limit,
        resume=resume,
        max_errors=max_errors,
        shard_size=shard_size,
    )
    chosen = chosen_detector(detector, settings)
    with prompts_on_disk(prompts) as path, batch_size_of(model, settings):
        reader = open_prompts(path, column)
        described = model.describe()
        decision = _decision(calibration, fpr, chosen.config(), described)
        if cascade is not None:
            chosen = _cascade(chosen, decision, cascade)
        identity = make_identity(
            detector=chosen.config(),
            model=described,
            input_sha256=file_sha256(path),
            column=reader.column,
            limit=limit,
            shard_size=shard_size,
            decision=decision.config() if decision else None,
        )
        record = RunRecord(
            run_hash=hash_identity(identity),
            identity=identity,
            input_path=str(prompts) if isinstance(prompts, str | Path) else None,
            model=described,
            batch_size=model.batch_size,
            execution=asdict(model.engine.execution),
            device_name=device_name(model.device),
            versions=library_versions(),
            **(decision.facts() if decision else {}),
        )
        schema = shard_schema(reader.schema, decided=decision is not None)
        with interruptible() as interrupts, RunDirectory(Path(out), record, schema, resume) as run:
            work = _Work(model, chosen, decision, run, interrupts, on_progress)
            return work.finish(reader, settings)


class _Work:
    """One call of :func:`scan` on an open run directory."""

    def __init__(
        self,
        model: Denoiser,
        detector: Detector,
        decision: Decision | None,
        run: RunDirectory,
        interrupts: Interrupts,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._model, self._detector, self._decision, self._run = model, detector, decision, run
        self._interrupts, self._on_progress = interrupts, on_progress
        self._counts, self._evaluations = Counts(), model.engine.evaluations
        self._scored, self._began, self._skipped = 0, perf_counter(), 0.0

    def finish(self, reader: Reader, settings: Settings) -> ScanResult:
        """Do what is not committed yet and close the books."""
        run, earlier = self._run, self._run.record.seconds
        try:
            shards = 0
            with read_ahead(limited(reader, settings)) as chunks:
                for index, rows in enumerate(chunks):
                    self._one_shard(index, rows)
                    shards += 1
            over = _over_budget(self._counts, settings.max_errors)
            state: Literal["done", "over_budget"] = "over_budget" if over else "done"
            run.record.state = state
        except BaseException:
            run.record.state = "interrupted"
            # a signal inside a library's callback may come back as that library's own error
            self._interrupts.check()
            raise
        finally:
            seconds = perf_counter() - self._began
            run.record.counts, run.record.seconds = self._counts, earlier + seconds
            # halved if memory ran out
            run.record.batch_size = self._model.batch_size
            if not self._scored:
                run.keep_record()
            run.save_record()
        paths = [run.path(i) for i in range(shards)]
        return ScanResult(
            run.root,
            paths,
            run.record.run_hash,
            self._counts,
            self._scored,
            seconds,
            state,
            self._decision,
            self._model.engine.evaluations - self._evaluations,
            run.seal(),
        )

    def _one_shard(self, index: int, rows: Rows) -> None:
        self._interrupts.check()
        footer = self._run.committed.get(index)
        if footer is not None and footer.rows != len(rows):
            self._run.discard(index, f"shard {index} has {footer.rows} rows, not {len(rows)}")
            footer = None
        if footer is None:
            table = score_rows(
                self._model,
                self._detector,
                rows,
                lambda done: self._report(rows, done),
                self._decision,
            )
            self._interrupts.check()
            footer = self._run.commit(index, table)
            self._scored += len(rows)
        else:
            self._skipped = rows.fraction
        self._run.sign(rows.fraction)
        self._counts.rows += footer.rows
        self._counts.quarantined += footer.quarantined
        self._counts.ok += footer.rows - footer.quarantined

    def _report(self, rows: Rows, done: int) -> None:
        self._interrupts.check()
        if self._on_progress is None:
            return
        seconds = perf_counter() - self._began
        scored = self._scored + done
        position = self._counts.rows + done
        read = rows.fraction * position / (rows.first + len(rows))
        share = read - self._skipped
        remaining = seconds * (1 - read) / share if share > 0 else None
        self._on_progress(Progress(position, self._counts.quarantined, scored, seconds, remaining))


def _decision(
    calibration: str | Path | CalibrationRecord | None,
    fpr: float,
    detector: dict[str, Any],
    model: dict[str, Any],
) -> Decision | None:
    if calibration is None:
        if fpr != FPR:
            raise UsageError("scan: a false-positive rate needs a calibration — see calibrate")
        return None
    if not isinstance(calibration, CalibrationRecord):
        calibration = CalibrationRecord.read(calibration)
    calibration.check(detector, model)
    return Decision(calibration, fpr)


def _cascade(detector: Detector, decision: Decision | None, keep: float) -> Detector:
    from dori_fast.detect import Cascade, Wen

    if decision is None:
        raise UsageError("scan: a cascade needs a calibration with memorized prompts")
    if not isinstance(detector, Wen):
        raise UsageError(f"scan: a cascade works with the detector 'wen', not {detector.name!r}")
    return Cascade(detector, futility_bound(decision.suspicious, decision.threshold, keep))


def _over_budget(counts: Counts, max_errors: float) -> bool:
    allowed = max_errors if max_errors >= 1 else max_errors * counts.rows
    return counts.quarantined > allowed
