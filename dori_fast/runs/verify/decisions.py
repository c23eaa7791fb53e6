"""The decisions of a run, made again from its shards and the calibrations kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dori_fast.errors import IntegrityError
from dori_fast.runs.calibrate import read_calibration
from dori_fast.runs.flag import decided, outcome
from dori_fast.runs.scoring.decision import Decision, Rule
from dori_fast.runs.store.decisions import (
    CALIBRATION,
    RECORD,
    ROWS,
    DecisionRecord,
    decided_rows,
    read_decision,
)
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.reopen import StoredRun

_MADE = {"made", "dori_fast", "files", "shards_root"}


def wrong_decisions(run: StoredRun, paths: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (path in the run directory, fault) of each decision that does not hold.

    Args:
        run: run whose shards are whole.
        paths: paths of the records, in the run directory.
    """
    for path in paths:
        try:
            if fault := _fault(run, (run.root / path).parent):
                yield path, fault
        except IntegrityError as error:
            yield path, str(error).split("; ")[0]


def _fault(run: StoredRun, folder: Path) -> str | None:
    record = read_decision(folder / RECORD)
    for name in (ROWS, CALIBRATION):
        path = folder / name
        if not path.is_file() or file_sha256(path) != record.files.get(name):
            return f"{name} is not the file that was decided with"
    calibration = read_calibration(folder / CALIBRATION)
    if calibration.facts() != record.calibration:
        return f"{CALIBRATION} is not the calibration that it names"
    decision = Decision(calibration, Rule(**record.rule))
    again = outcome(run, decision, record.shards_root)
    if _compared(again) != _compared(record):
        return "does not follow from the scores and its calibration"
    rows = zip(decided(run, decision, again.rank), decided_rows(folder), strict=True)
    if not all(now.equals(then) for now, then in rows):
        return f"{ROWS} does not follow from the scores and its calibration"
    return None


def _compared(record: DecisionRecord) -> dict[str, object]:
    facts = record.model_dump(exclude=_MADE)
    return {
        name: np.round(value, 9) if isinstance(value, float) else value
        for name, value in facts.items()
    }
