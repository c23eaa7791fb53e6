"""dori-fast export."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dori_fast.cli.commands.results.report import Label, Positive, read_labels
from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import command
from dori_fast.cli.terminal import Status, print_result, quiet_libraries
from dori_fast.errors import UsageError

if TYPE_CHECKING:
    from dori_fast.report import Labels
    from dori_fast.report.export.measured import Measured

Format = Literal["lm-eval", "model-card", "csv"]


@command()
def export(
    result: Annotated[
        Path,
        typer.Argument(help="Run directory, folder of benchmark-mitigations, or removal.json."),
    ],
    format: Annotated[Format, typer.Option(help="Output format.")],
    out: Annotated[Path, typer.Option(help="Output file; replaced if it exists.")],
    label: Label = None,
    positive: Positive = None,
    formulas: Annotated[
        bool,
        typer.Option("--formulas", help="Formula-like text left unescaped, for csv."),
    ] = False,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Flagged rows alone, highest score first, for csv.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Export results as lm-eval JSON, model card or CSV.

    Reads only result files. lm-eval and model-card need a scan with --label or a calibration,
    the folder of benchmark-mitigations, or removal.json (benchmarks.quality.removal writes it);
    csv takes any run with rows.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.report import csv_rows, lm_eval, model_card
        from dori_fast.runs.store.durable import write_durably
        from dori_fast.runs.store.reopen import open_run

        labels = read_labels(label, positive)
        if format == "csv":
            run = open_run(result)
            if run.record.state == "over_budget":
                status.say(
                    f"{run.record.counts.quarantined:,} rows of the run failed, more than it allows"
                )
            elif run.record.state != "done":
                status.say(f"the run is {run.record.state}: only committed rows are exported")
            lines: Iterable[str] = csv_rows(run, formulas=formulas, flagged=flagged)
        else:
            measured = _measured(result, labels)
            if format == "lm-eval":
                lines = [json.dumps(lm_eval(measured), indent=2), "\n"]
            else:
                lines = [model_card(measured)]
        write_durably(out, lambda file: _write(file, lines))
        print_result(str(out))


def _measured(result: Path, labels: Labels | None) -> Measured:
    from dori_fast.report import measured_file, measured_scan
    from dori_fast.runs.store.reopen import open_run

    board = result / "leaderboard.json" if result.is_dir() else result
    if not board.is_file():
        run = open_run(result)
        if run.kind != "scan":
            raise UsageError(
                f"export: {result} is of dori-fast {run.kind}, which has no metrics to export; use"
                " --format csv, or dori-fast report"
            )
        return measured_scan(run, labels)
    if labels is not None:
        raise UsageError(f"export: --label is for scans, not for {board}; leave it out")
    return measured_file(board)


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
