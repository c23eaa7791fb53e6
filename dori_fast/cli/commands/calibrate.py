"""dori-fast calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    FastModelOptions,
    Header,
    Limit,
    MaxErrors,
    Scoring,
    command,
)
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

_RATES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)


@command()
def calibrate(
    prompts: Annotated[Path, typer.Argument(help="Clean prompts; .txt, .csv, .jsonl or .parquet.")],
    out: Annotated[Path, typer.Option(help="Calibration file to write; JSON.")],
    source: FastModelOptions,
    scoring: Scoring,
    suspicious: Annotated[
        Path | None, typer.Option(help="Memorized prompts, needed by scan --cascade.")
    ] = None,
    column: Column = None,
    header: Header = None,
    limit: Limit = None,
    max_errors: MaxErrors = 0.01,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score clean prompts, to flag rows of later scans.

    Pass the file to scan --calibration, which then flags rows at a stated false-positive rate.
    Use the same model, detector, seeds and dtype.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.evaluate.calibration import Calibration
        from dori_fast.runs.calibrate import calibrate as run_calibration
        from dori_fast.runs.sources.open import open_prompts
        from dori_fast.runs.sources.where import Selection

        open_prompts(prompts, column, Selection.of(header=header))
        record = run_calibration(
            source.load(),
            prompts,
            out=out,
            **vars(scoring),
            column=column,
            header=header,
            limit=limit,
            max_errors=max_errors,
            suspicious=suspicious,
        )
        yardstick = Calibration(record.scores)
        status.say(
            f"{record.rows:,} rows: {len(record.scores):,} distinct clean prompts,"
            f" {record.repeated:,} repeated, {record.quarantined:,} quarantined;"
            f" {len(record.suspicious):,} memorized prompts; {out}"
        )
        supported = [rate for rate in _RATES if rate >= yardstick.resolution]
        found = [(r, yardstick.threshold(r), yardstick.false_positive_rate(r)) for r in supported]
        if as_json:
            keys = ("rate", "threshold", "low", "high")
            rates = [dict(zip(keys, (r, t, i.low, i.high), strict=True)) for r, t, i in found]
            prompts_used = len(record.scores)
            print_result(json.dumps({"out": str(out), "prompts": prompts_used, "rates": rates}))
        else:
            rows = [(f"{r:g}", f"{t:.4f}", f"{i.low:.2%} to {i.high:.2%}") for r, t, i in found]
            print_result(format_table(("rate", "threshold", "95 % interval"), rows))
