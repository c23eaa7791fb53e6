"""The cascade of a calibrated scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dori_fast.errors import UsageError
from dori_fast.evaluate.futility import futility_bound
from dori_fast.runs.scoring.decision import Decision

if TYPE_CHECKING:
    from dori_fast.detect import Detector


def cascaded(detector: Detector, decision: Decision | None, keep: float) -> tuple[Detector, float]:
    """A cascade that keeps a share of the rows above a decision's threshold, and that threshold.

    Raises:
        UsageError: no decision or none with a threshold before the scan, too few memorized prompts
            in its calibration, or another detector than ``wen``.
    """
    from dori_fast.detect import Cascade, Wen

    if decision is None:
        raise UsageError("scan: a cascade needs a calibration with memorized prompts")
    if decision.rule.kind != "fpr":
        raise UsageError("scan: a cascade needs a threshold before the scan; give fpr, not fdr")
    if not isinstance(detector, Wen):
        raise UsageError(f"scan: a cascade works with the detector 'wen', not {detector.name!r}")
    threshold = decision.calibration.threshold(decision.rule.rate)
    suspicious = decision.record.suspicious or np.empty((0, 2))
    return Cascade(detector, futility_bound(suspicious, threshold, keep)), threshold
