"""The scan: reads rows, has them scored, commits them in shards, resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from dori_fast.errors import UsageError
from dori_fast.evaluate.discoveries import Variant
from dori_fast.runs.budget import MAX_ERRORS, require_rows, verdict
from dori_fast.runs.flag import decide, wanted_decision
from dori_fast.runs.progress import Progress
from dori_fast.runs.result import ScanResult
from dori_fast.runs.scoring.cascaded import cascaded
from dori_fast.runs.scoring.decision import CalibrationRecord, Decision, Rule
from dori_fast.runs.scoring.device_name import device_name
from dori_fast.runs.scoring.score import shard_schema
from dori_fast.runs.settings import (
    SEEDS,
    STEPS,
    EngineName,
    Settings,
    Units,
    checked,
    chosen_detector,
    prepared,
    refuse_inside,
)
from dori_fast.runs.signals import Interrupts, interruptible
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import input_sha256, open_prompts, prompts_on_disk
from dori_fast.runs.sources.read_ahead import read_ahead
from dori_fast.runs.sources.rows import Reader, limited
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.directory import Resume, RunDirectory
from dori_fast.runs.store.job import Job
from dori_fast.runs.store.record import (
    RunRecord,
    hash_identity,
    library_versions,
    make_identity,
    threads_of,
)
from dori_fast.runs.store.reopen import open_run
from dori_fast.runs.workers.engine import Engine
from dori_fast.runs.workers.ledger import Ledger

if TYPE_CHECKING:
    from dori_fast.detect import Detector
    from dori_fast.models import Denoiser
    from dori_fast.runs.workers.supervisor import Supervisor

_log = logging.getLogger("dori_fast.runs")


def scan(
    model: Denoiser | Callable[[], Denoiser],
    prompts: str | Path | Iterable[object],
    *,
    out: str | Path,
    detector: str | Detector = "wen",
    seeds: int = SEEDS,
    steps: int = STEPS,
    units: Units = "epsilon",
    column: str | None = None,
    where: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    header: bool | None = None,
    batch_size: int | Literal["auto"] = "auto",
    limit: int | None = None,
    resume: Resume = "auto",
    max_errors: float = MAX_ERRORS,
    shard_size: int = 2048,
    calibration: str | Path | CalibrationRecord | None = None,
    fpr: float | None = None,
    fdr: float | None = None,
    fdr_variant: Variant = "bh",
    cascade: float | None = None,
    workers: int | Literal["auto"] = 1,
    watchdog: float | None = None,
    engine: EngineName = "local",
    num_jobs: int = 1,
    job_id: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> ScanResult:
    """Score every prompt of an input into a run directory, in constant memory.

    Every input row gets one output row. A crash loses at most ``shard_size`` rows of work, and the
    same call finishes an interrupted run. Rows that cannot be scored (no prompt, not text, invalid
    UTF-8, over 1 MB, malformed, non-finite score) are quarantined with the reason.

    Args:
        model: from :func:`dori_fast.load`; or a function that loads it, which is called after the
            input has been opened.
        prompts: file, folder, pattern or ``hf:NAME``, see
            :func:`dori_fast.runs.sources.open.open_prompts`; an iterable of str; or a table with a
            column of prompts (of pandas, polars, pyarrow or datasets, a list of dicts, a dict of
            columns), which is read like a file.
        out: run directory; created if missing.
        detector: name of a detector (with ``seeds`` and ``steps``), or a detector object.
        seeds: number of noise seeds, shared by all prompts.
        steps: number of denoising steps that are scored.
        units: predictions that the detector compares: "epsilon", "x0", or "prediction", the
            network's own output.
        column: name of the prompt column; default: the first usual name that exists.
        where: conditions that every row must meet, such as ``"similarity > 0.3"``; see
            :meth:`dori_fast.runs.sources.where.Condition.parse`. Kept rows are numbered from 0.
        keep: columns to pass on to the shards; default: all. Of Parquet files no other columns
            are read.
        header: True if .csv and .tsv files begin with the names of their columns. False names them
            ``column_1``, ``column_2``, ... (``column="1"`` is the first). None takes the first line
            for a header, but refuses a prompt column whose name reads like a prompt.
        batch_size: UNet samples per evaluation; "auto" keeps the model's.
        limit: number of rows to read; default: all.
        resume: "auto" continues an earlier run if there is one, "never" requires that there is
            none, "must" requires one.
        max_errors: allowed quarantined rows: a fraction if below 1, else a number of rows. A scan
            whose every row failed is over this budget whatever it allows.
        shard_size: rows per shard.
        calibration: result or file of :func:`dori_fast.calibrate` with the same model and detector.
            The finished scan is then decided on as by :func:`dori_fast.flag`, which can do so
            again at other rates.
        fpr, fdr, fdr_variant: wanted error rate of the decision, as in :func:`dori_fast.flag`.
        cascade: share of the flagged prompts that an approximate, faster scan keeps, such as 0.99.
            It stops early on prompts that the full test would hardly flag; it needs a calibration
            with memorized prompts. Kept rows have the full test's score. Stopped rows have the mean
            over the seeds that were evaluated, no ``p_value``, and are not ``flagged``.
        workers: number of processes that score. Each loads the model again, so the model must
            come from files. They are spread over the GPUs, or share this process's CPU threads;
            "auto" is one for each GPU, and one on a CPU. Rows equal those of one process: to the
            bit on CPUs of one kind with equal threads. If memory runs out, the shard is scored
            again in smaller batches, and its footer has their size. Where ``model`` is a function,
            this process drops what it loaded before the first worker starts.
        watchdog: seconds after which a silent worker is killed, for more than one worker; default:
            ten times the median block of rows, at least 300.
        engine: kind of workers: "local", processes of this machine, or "ray", actors of a Ray
            cluster, see :class:`dori_fast.runs.workers.ray.Actors`.
        num_jobs: number of jobs that share the run. Afterwards a call without jobs checks that
            every shard is there and completes run.json.
        job_id: this job, from 0; it scores the shards with ``index % num_jobs == job_id``.
        on_progress: called about once a second with a :class:`dori_fast.runs.progress.Progress`.

    Raises:
        UsageError: wrong arguments, an input that is unusable or has no rows, unusable output,
            another writer, or a model or detector that cannot be sent to other processes.
        IntegrityError: ``out`` holds a run with another configuration, model or input, or the
            calibration is another model's or detector's.
        StorageError: the disk refused a write; the same call continues later.
        ScanInterrupted: SIGINT or SIGTERM; the same call continues later.
        WorkerError: workers kept dying; what is committed is intact.
    """
    job = Job(job_id, num_jobs)
    settings = checked(
        "scan",
        seeds=seeds,
        steps=steps,
        units=units,
        batch_size=batch_size,
        limit=limit,
        resume=resume,
        max_errors=max_errors,
        shard_size=shard_size,
        workers=workers,
        watchdog=watchdog,
        engine=engine,
    )
    chosen = chosen_detector(detector, settings)
    if watchdog is not None and engine == "local" and workers == 1:
        raise UsageError("scan: watchdog kills workers, but there is one process; raise workers")
    with ExitStack() as opened:
        interrupts = opened.enter_context(interruptible())
        path = opened.enter_context(prompts_on_disk(prompts))
        refuse_inside(out, prompts)
        selection = Selection.of(where, keep, header)
        reader = open_prompts(path, column, selection)
        require_rows(reader, described(prompts))
        model = opened.enter_context(prepared(model, settings))
        config = model.config()
        rule, decision = Rule.of(fpr, fdr, fdr_variant), None
        if calibration is not None:
            decision = wanted_decision(calibration, rule, chosen.config(), config)
        elif (fpr, fdr) != (None, None):
            raise UsageError("scan: an error rate needs a calibration; see calibrate")
        dropped_below = None
        if cascade is not None:
            chosen, dropped_below = cascaded(chosen, decision, cascade)
        identity = make_identity(
            detector=chosen.config(),
            model=config,
            input_sha256=input_sha256(path),
            column=reader.column,
            selection=selection.config(),
            limit=limit,
            shard_size=shard_size,
        )
        record = RunRecord(
            run_hash=hash_identity(identity),
            identity=identity,
            input_path=str(prompts) if isinstance(prompts, str | Path) else None,
            model=config,
            reading=list(model.reading),
            batch_size=model.batch_size,
            execution=asdict(model.engine.execution),
            device_name=device_name(model.device),
            threads=threads_of(model.device, _sharing(settings)),
            versions=library_versions(),
            threshold=dropped_below,
        )
        schema = shard_schema(reader.schema)
        scoring = _workers(Engine(model, chosen, record.run_hash), settings)
        # a loaded model that only workers need would take memory of the first one's GPU
        del model
        interrupts.check()
        with RunDirectory(Path(out), record, schema, resume, job) as run:
            _compare_threads(run)
            return _finish(run, reader, settings, scoring, decision, interrupts, on_progress)


def _finish(
    run: RunDirectory,
    reader: Reader,
    settings: Settings,
    engine: Engine | Supervisor,
    decision: Decision | None,
    interrupts: Interrupts,
    on_progress: Callable[[Progress], None] | None,
) -> ScanResult:
    """Score what is not committed yet, then complete the record and seal the run."""
    with read_ahead(limited(reader, settings.shard_size, settings.limit)) as chunks:
        ledger = Ledger(run, chunks)
        began, earlier = perf_counter(), run.record.seconds

        def show(open_rows: int) -> None:
            interrupts.check()
            if on_progress is not None:
                on_progress(_progress(ledger, open_rows, perf_counter() - began))

        try:
            engine.finish(ledger, show)
            if not ledger.done:
                raise RuntimeError("scan: shards are left that no worker has scored; run it again")
            run.record.state = state = verdict(ledger.counts, settings.max_errors)
        except BaseException:
            run.record.state = "interrupted"
            ledger.settle()
            # a library may turn a signal inside its callback into an error of its own
            interrupts.check()
            raise
        finally:
            seconds = perf_counter() - began
            run.record.counts, run.record.seconds = ledger.counts, earlier + seconds
            run.record.add_spent(engine.evaluations, engine.rows_computed)
            # halved if memory ran out
            run.record.batch_size = engine.batch_size
            if not ledger.scored:
                run.keep_record()
            run.save_record()
    root, found = "", None
    if run.job.alone:
        root = run.seal()
        if decision is not None and ledger.counts.rows:
            found = decide(open_run(run.root), decision)
    return ScanResult(
        out=run.root,
        shards=[run.path(index) for index in ledger.shards],
        run_hash=run.record.run_hash,
        counts=ledger.counts,
        scored=ledger.scored,
        seconds=seconds,
        state=state,
        decision=found,
        evaluations=engine.evaluations,
        rows_computed=engine.rows_computed,
        merkle_root=root,
    )


def _progress(ledger: Ledger, open_rows: int, seconds: float) -> Progress:
    """Progress; ``open_rows`` are done but not committed yet."""
    computed = ledger.scored + open_rows
    # extrapolated from the input read so far
    per_row = ledger.fraction / max(1, ledger.rows)
    left = max(0.0, 1 - per_row * (ledger.passed + computed))
    share = per_row * computed
    return Progress(
        done=ledger.counts.rows + open_rows,
        quarantined=ledger.counts.quarantined,
        computed=computed,
        seconds=seconds,
        remaining=seconds * left / share if share > 0 else None,
    )


def _workers(engine: Engine, settings: Settings) -> Engine | Supervisor:
    """The engine itself, or a supervisor of workers that have copies of it."""
    # importing the scan needs no torch
    if settings.engine == "ray":
        from dori_fast.runs.workers.ray import Actors
        from dori_fast.runs.workers.supervisor import Supervisor

        return Supervisor(engine, Actors(engine, settings.workers), settings.watchdog)
    count, device = settings.workers, engine.model.device
    if count == "auto":
        import torch

        count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count == 1:
        return engine
    from dori_fast.runs.workers.processes import Processes
    from dori_fast.runs.workers.supervisor import Supervisor

    return Supervisor(engine, Processes(engine, count), settings.watchdog)


def _sharing(settings: Settings) -> int:
    """Number of processes that share this process's CPU threads; actors of a cluster do not."""
    count = settings.workers
    return 1 if count == "auto" or settings.engine == "ray" else count


def _compare_threads(run: RunDirectory) -> None:
    """Warn of a resume with another number of threads, and drop the number from the record."""
    if run.earlier is None or run.earlier.threads == run.record.threads:
        return
    if run.earlier.threads is not None:
        then, now = run.earlier.threads, run.record.threads
        _log.warning("%s: begun with %s threads, resumed with %s", run.root, then, now)
    run.record.threads = None
    # now, before a shard is added: a kill may follow
    run.save_record()
