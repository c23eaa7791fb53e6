"""Flags of a finished scan: arithmetic on its stored scores, whose every decision is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.evaluate.discoveries import Variant
from dori_fast.runs.calibrate import check_comparable, read_calibration
from dori_fast.runs.scoring.decision import CalibrationRecord, Decision, Rule
from dori_fast.runs.store.decisions import COLUMNS, DecisionRecord, keep_decision
from dori_fast.runs.store.job import Job
from dori_fast.runs.store.lock import RunLock
from dori_fast.runs.store.manifest import Manifest
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.reopen import StoredRun, open_run

_FINISHED = ("done", "over_budget")


def flag(
    run: str | Path,
    calibration: str | Path | CalibrationRecord,
    *,
    fpr: float | None = None,
    fdr: float | None = None,
    fdr_variant: Variant = "bh",
) -> DecisionRecord:
    """Decide which rows of a finished scan to flag; nothing is scored.

    The decision is kept in the run directory beside earlier ones; readers of the run use the
    newest. A decision equal to the newest one is not made again.

    Args:
        run: run directory of a finished scan.
        calibration: result or file of :func:`dori_fast.calibrate` with the scan's model and
            detector.
        fpr: false-positive rate: share of clean prompts that may be flagged; default 0.01.
        fdr: false discovery rate in place of it: expected share of clean prompts among the flagged
            rows; see :mod:`dori_fast.evaluate.discoveries`.
        fdr_variant: procedure of a false discovery rate: ``"bh"`` (Benjamini-Hochberg) or
            ``"by"`` (Benjamini-Yekutieli).

    Returns:
        The decision.

    Raises:
        UsageError: no finished scan, another process that writes there, a rate that cannot be
            reached, or a scan whose cascade dropped rows that the decision could flag.
        IntegrityError: the run is damaged, or the calibration is another model's or detector's.
        StorageError: the disk refused.
    """
    rule = Rule.of(fpr, fdr, fdr_variant)
    stored = open_run(run)
    if stored.kind != "scan":
        raise UsageError(f"flag: {run} is of dori-fast {stored.kind}; give the --out of a scan")
    if stored.record.state not in _FINISHED:
        raise UsageError(
            f"flag: the scan in {run} is {stored.record.state}; run its command again to finish it"
        )
    detector, model = (stored.record.identity[name] for name in ("detector", "model"))
    decision = wanted_decision(calibration, rule, _full(detector), model)
    lock = RunLock(stored.root, Job())
    lock.acquire()
    try:
        return decide(stored, decision)
    finally:
        lock.release()


def wanted_decision(
    calibration: str | Path | CalibrationRecord,
    rule: Rule,
    detector: dict[str, Any],
    model: dict[str, Any],
) -> Decision:
    """The decision on scans by this detector and model."""
    if not isinstance(calibration, CalibrationRecord):
        calibration = read_calibration(calibration)
    check_comparable(calibration, detector, model)
    return Decision(calibration, rule)


def decide(run: StoredRun, decision: Decision) -> DecisionRecord:
    """Decide on a sealed run whose lock is held, unless its newest decision is this one."""
    record = outcome(run, decision, Manifest.read(run.root).shards_root)
    _check_cascade(run.record, record)
    if run.decision is not None and run.decision[1].same_as(record):
        return run.decision[1]
    text = decision.record.model_dump_json(indent=1)
    keep_decision(run.root, record, text, decided(run, decision, record.rank))
    return record


def outcome(run: StoredRun, decision: Decision, shards_root: str) -> DecisionRecord:
    """What a decision on a run's rows is, without keeping it."""
    counts = np.zeros(decision.clean + 1, np.int64)
    for ranks, _ in _ranked(run, decision):
        counts += decision.counts(ranks)
    verdict = decision.verdict(counts)
    observed = decision.observed(verdict)
    return DecisionRecord(
        shards_root=shards_root,
        rule=decision.rule.config(),
        calibration=decision.record.facts(),
        clean_prompts=decision.clean,
        rows=verdict.rows,
        flagged=verdict.flagged,
        expected_false=verdict.expected_false,
        rank=verdict.rank,
        p_value=verdict.rank / (decision.clean + 1),
        threshold=verdict.threshold if np.isfinite(verdict.threshold) else None,
        observed=(observed.value, observed.low, observed.high),
    )


def decided(run: StoredRun, decision: Decision, rank: int) -> Iterator[pa.Table]:
    """Rows as :data:`dori_fast.runs.store.decisions.COLUMNS`, a table per shard."""
    for ranks, part in _ranked(run, decision):
        scored, stopped = ranks > 0, _stopped(run.record, part)
        p_value = pa.array(ranks / (decision.clean + 1), mask=~scored | stopped)
        flagged = pa.array(ranks <= rank, mask=~scored)
        yield pa.Table.from_arrays([part["row_id"], p_value, flagged], schema=COLUMNS)


def _ranked(run: StoredRun, decision: Decision) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    for shard in run.shards:
        columns = ["row_id", "score", "score_per_seed"]
        part = pq.read_table(shard, columns=columns, partitioning=None)
        scores = part["score"].to_numpy().astype(np.float64)
        yield decision.ranks(scores, _stopped(run.record, part)), part


def _stopped(record: RunRecord, part: pa.Table) -> NDArray[np.bool_]:
    """Rows that a cascade stopped before their last seed."""
    detector = record.identity["detector"]
    if "futility_bound" not in detector:
        return np.zeros(len(part), bool)
    used = pc.fill_null(pc.list_value_length(part["score_per_seed"]), 0).to_numpy()
    return np.asarray((used > 0) & (used < len(detector["seeds"])))


def _full(detector: dict[str, Any]) -> dict[str, Any]:
    """The full test's config, whose scores a calibration holds."""
    return {name: value for name, value in detector.items() if name != "futility_bound"}


def _check_cascade(run: RunRecord, decision: DecisionRecord) -> None:
    kept_above = run.threshold if "futility_bound" in run.identity["detector"] else None
    above = decision.threshold
    if kept_above is None or not decision.rank or (above is not None and above >= kept_above):
        return
    flagged = "every row" if above is None else f"rows above {above:g}"
    raise UsageError(
        f"flag: the scan's cascade dropped rows that are hardly above {kept_above:g}, and this"
        f" decision flags {flagged}; use a smaller rate, or scan without --cascade"
    )
