"""Words and options for decisions: which rows are flagged, at which error rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from dori_fast.runs.store.decisions import DecisionRecord

FLAGGED = 5
"""Exit code of ``--fail-if-flagged`` where rows are flagged."""

Fpr = Annotated[
    float | None,
    typer.Option(help="False-positive rate: share of clean prompts that may be flagged; 0.01."),
]
Fdr = Annotated[
    float | None,
    typer.Option(
        help="False discovery rate, in place of --fpr: expected share of clean prompts among the"
        " flagged rows."
    ),
]
FdrVariant = Annotated[
    Literal["bh", "by"],
    typer.Option(help="Procedure of --fdr: Benjamini-Hochberg or Benjamini-Yekutieli."),
]
FailIfFlagged = Annotated[
    bool, typer.Option("--fail-if-flagged", help="Exit code 5 if a row is flagged.")
]


def decision_lines(decision: DecisionRecord, run: Path) -> list[str]:
    """The number of flagged rows, the rule, and where the rows are."""
    found, rate = decision, decision.rule["rate"]
    chance = f"about {found.expected_false:,.1f} of them are expected by chance"
    if found.rule["kind"] == "fpr":
        chance += ", were no row memorized"
        wanted = f"false-positive rate {rate:g}"
    else:
        chance = f"at most {found.expected_false:,.1f} of them are expected to be false"
        wanted = f"false discovery rate {rate:g} ({found.rule['variant'].upper()})"
    seen = "{:.2%} [{:.2%}, {:.2%}]".format(*found.observed)
    above = "no score" if found.threshold is None else f"scores above {found.threshold:.4f}"
    lines = [
        f"{found.flagged:,} of {found.rows:,} rows flagged; {chance}",
        f"wanted {wanted}: {above}, p up to {found.p_value:.2g};"
        f" {seen} of {found.clean_prompts:,} clean prompts are above",
    ]
    if found.flagged:
        lines.append(f"list them: dori-fast export {run} --flagged --format csv --out flagged.csv")
    elif found.rule["kind"] == "fdr":
        least = 1 / (found.clean_prompts + 1)
        needed = found.rows * least / rate
        lines.append(
            f"the smallest p-value of {found.clean_prompts:,} clean prompts is {least:.2g}, so at"
            f" least {needed:,.0f} rows must have it; calibrate on more prompts to flag fewer"
        )
    return lines


def decision_json(decision: DecisionRecord | None) -> dict[str, Any] | None:
    """A decision as JSON."""
    return None if decision is None else decision.model_dump(mode="json")
