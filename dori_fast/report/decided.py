"""The decision of a run, as pages and exports show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decided:
    """The newest decision of a run.

    Attributes:
        kind: ``"fpr"`` or ``"fdr"``, the kind of the wanted error rate.
        rate: the wanted rate.
        variant: procedure of a false discovery rate, else None.
        threshold: score above which rows are flagged; None if there is no such score.
        observed: share of the clean prompts above it with its 95 % interval; None if unknown.
        clean: number of clean prompts; None if unknown.
        expected_false: flagged rows that are expected by chance; None if unknown.
        p_value: largest flagged p-value; None if unknown.
        made: time of the decision, or None.
        calibration: facts of the calibration.
    """

    kind: str
    rate: float
    variant: str | None
    threshold: float | None
    observed: tuple[float, float, float] | None
    clean: int | None
    expected_false: float | None
    p_value: float | None
    made: str | None
    calibration: Mapping[str, Any]

    @property
    def wanted(self) -> str:
        """The wanted rate in words."""
        if self.kind == "fpr":
            return f"false-positive rate {self.rate:g}"
        procedure = {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}[str(self.variant)]
        return f"false discovery rate {self.rate:g} ({procedure})"


def decided(summary: Mapping[str, Any]) -> Decided | None:
    """The newest decision in a run's summary; early calibrated runs decided while they scored."""
    found = summary.get("decision")
    if found is not None:
        rule, observed = found["rule"], found["observed"]
        return Decided(
            rule["kind"],
            rule["rate"],
            rule.get("variant"),
            found["threshold"],
            tuple(observed),
            found["clean_prompts"],
            found["expected_false"],
            found["p_value"],
            found["made"],
            found["calibration"],
        )
    early = summary["identity"].get("decision")
    if early is None:
        return None
    seen = summary["observed"]
    return Decided(
        "fpr",
        early["rate"],
        None,
        summary["threshold"],
        None if seen is None else tuple(seen),
        summary["clean_prompts"],
        None,
        None,
        None,
        {"scores_sha256": early.get("calibration")},
    )
