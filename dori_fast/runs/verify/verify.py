"""Checks a run directory against its manifest, record, input and model."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.manifest import MANIFEST
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.verify.checks import RECORD, Checks
from dori_fast.runs.verify.result import Verification

if TYPE_CHECKING:
    from dori_fast.models import Denoiser


def verify(
    run: str | Path,
    *,
    model: Denoiser | str | Path | None = None,
    sample: float = 0.01,
    seed: int | None = None,
    root: str | None = None,
    files_only: bool = False,
) -> Verification:
    """Check a run directory of a scan, localization or attack; nothing is written.

    Each shard is scored again with its own batch size. Scores must be equal to the bit on the same
    device with the same threads and libraries, else within
    :data:`dori_fast.runs.verify.rescore.TOLERANCE`, relative. On GPUs it is not proven that equal
    devices give equal bits.

    Args:
        run: run directory.
        model: model, or its location now; default: the location in run.json.
        sample: share of the rows of a scan to score again, 0..1; at least 8 rows unless 0.
        seed: seed for choosing the rows to score again; default: random, stated in ``checked``.
        root: Merkle root that was noted when the run finished, hexadecimal.
        files_only: True to skip the model, both its files and its scores.

    Raises:
        UsageError: no run directory, a wrong argument, or the model is not at hand.
    """
    if not 0 <= sample <= 1:
        raise UsageError(f"verify: sample={sample}: a share of the rows, between 0 and 1")
    path = Path(run)
    if not (path / RECORD).exists():
        raise UsageError(f"{path}: no run directory (it has no run.json); check the path")
    _reject_fine_tuning(path)
    checks = Checks(path)
    checks.manifest(root)
    record = checks.record()
    if record is None:
        return checks.result
    shards = checks.shards(record)
    if not checks.result.findings:
        checks.decisions()
    checks.input(record)
    if files_only:
        checks.result.skipped.append("weights and scores: only files were asked for")
    elif checks.weights(record, model) and sample and shards:
        seed = secrets.randbits(32) if seed is None else seed
        checks.scores(record, shards, model, sample, seed)
    return checks.result


def _reject_fine_tuning(run: Path) -> None:
    """Reject fine-tuning runs: they have no rows to verify.

    One with shards or a manifest is another run whose run.json was edited, and is checked.
    """
    if (run / MANIFEST).exists() or shard_names.directory(run).exists():
        return
    try:
        record = RunRecord.read(run / RECORD)
    except IntegrityError:
        return
    if "fine_tuning" in record.identity:
        raise UsageError(
            f"{run}: fine-tuning has no rows to check; give the --out of dori-fast scan, prune or"
            " attack"
        )
