"""dori-fast flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.decided import (
    FLAGGED,
    FailIfFlagged,
    Fdr,
    FdrVariant,
    Fpr,
    decision_json,
    decision_lines,
)
from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import AsJson, command
from dori_fast.cli.terminal import print_result


@command()
def flag(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished scan.")],
    calibration: Annotated[Path, typer.Option(help="Calibration file of dori-fast calibrate.")],
    fpr: Fpr = None,
    fdr: Fdr = None,
    fdr_variant: FdrVariant = "bh",
    fail_if_flagged: FailIfFlagged = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decide which rows of a finished scan to flag.

    Scores nothing: it compares stored scores with those of the calibration. Each decision is kept
    in the run directory; report and export use the newest.
    """
    with reported(debug):
        from dori_fast.runs.flag import flag as decide

        found = decide(run, calibration, fpr=fpr, fdr=fdr, fdr_variant=fdr_variant)
        text = (
            json.dumps(decision_json(found)) if as_json else "\n".join(decision_lines(found, run))
        )
        print_result(text)
        if fail_if_flagged and found.flagged:
            raise typer.Exit(FLAGGED)
