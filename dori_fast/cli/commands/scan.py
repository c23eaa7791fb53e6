"""dori-fast scan."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from dori_fast.cli.exits import Debug, end_over_budget, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    FastModelOptions,
    Header,
    Keep,
    Limit,
    MaxErrors,
    Resume,
    Scoring,
    Where,
    Workers,
    command,
    listed,
)
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.runs.estimate import Estimate
    from dori_fast.runs.result import ScanResult


@command(renamed={"num_jobs": "num_shards", "job_id": "shard_id"})
def scan(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="File, folder or pattern of prompts: txt, csv, tsv, jsonl, parquet, arrow or tar;"
            " or hf:NAME, a dataset of the hub."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory; created if missing.")],
    source: FastModelOptions,
    scoring: Scoring,
    column: Column = None,
    header: Header = None,
    where: Where = None,
    keep: Keep = None,
    limit: Limit = None,
    resume: Resume = "auto",
    max_errors: MaxErrors = 0.01,
    shard_size: Annotated[int, typer.Option(help="Rows per shard, the unit of commits.")] = 2048,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration file of dori-fast calibrate, to flag rows.")
    ] = None,
    fpr: Fpr = None,
    fdr: Fdr = None,
    fdr_variant: FdrVariant = "bh",
    fail_if_flagged: FailIfFlagged = False,
    cascade: Annotated[
        float | None,
        typer.Option(
            help="Share of flagged rows to keep while unlikely rows skip seeds, such as 0.99; needs"
            " a calibration with --suspicious."
        ),
    ] = None,
    workers: Workers = 1,
    watchdog: Annotated[
        float | None,
        typer.Option(
            help="Seconds of silence until a worker is killed; default: by its pace, at least 300."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Workers: local processes, or actors of a Ray cluster."),
    ] = "local",
    num_jobs: Annotated[
        int, typer.Option(help="Number of jobs that share the run, such as a Slurm array's.")
    ] = 1,
    job_id: Annotated[int, typer.Option(help="Number of this job, from 0.")] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate of time and memory by a probe, without a run."),
    ] = False,
    top: Annotated[
        int, typer.Option(help="Number of highest-scored prompts to print.", min=0)
    ] = 20,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score every prompt of a file or folder.

    Prints the prompts with the highest scores. The same command continues an interrupted scan.
    Exit codes: 0 done, 2 usage, 3 more rows quarantined than allowed, 4 integrity or changed
    configuration, 5 rows flagged with --fail-if-flagged, 75 interrupted.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.runs.estimate import estimate
        from dori_fast.runs.scan import scan as run_scan

        work: dict[str, Any] = {
            **vars(scoring),
            "column": column,
            "header": header,
            "where": where or [],
            "keep": listed(keep),
            "limit": limit,
            "shard_size": shard_size,
        }
        if dry_run:
            found = estimate(source.load, prompts, **work)
            print_result(json.dumps(asdict(found)) if as_json else _estimate_text(found))
            return
        result = run_scan(
            # called once the input is open: a wrong path is refused before a minute of loading
            source.load,
            prompts,
            out=out,
            **work,
            resume=resume,
            max_errors=max_errors,
            calibration=calibration,
            fpr=fpr,
            fdr=fdr,
            fdr_variant=fdr_variant,
            cascade=cascade,
            workers=workers,
            watchdog=watchdog,
            engine=engine,
            num_jobs=num_jobs,
            job_id=job_id,
            on_progress=status.progress,
        )
        if result.merkle_root:
            status.say(f"Merkle root {result.merkle_root}: see dori-fast verify")
        status.say(_summary(result))
        if result.decision:
            for line in decision_lines(result.decision, result.out):
                status.say(line)
        print_result(_as_json(result, top) if as_json else _as_table(result, top))
        end_over_budget(result)
        if fail_if_flagged and result.decision and result.decision.flagged:
            raise typer.Exit(FLAGGED)


def _estimate_text(found: Estimate) -> str:
    facts = [
        ("rows", f"{found.rows:,}, of which {found.quarantined:,} would be quarantined"),
        ("time", f"{timedelta(seconds=round(found.seconds))}, {found.rate:,.1f} rows/s"),
        ("peak memory", f"{found.peak_bytes / 1e6:,.0f} MB"),
        ("written", f"{found.written_bytes / 1e6:,.2f} MB in {found.shards:,} shards"),
        ("measured on", f"{found.probed:,} rows with all seeds, as without --cascade"),
    ]
    return format_table(("scan", "would take"), facts)


def _summary(result: ScanResult) -> str:
    counts, there = result.counts, result.counts.rows - result.scored
    scored = max(1, result.scored)
    each, rows = result.evaluations / scored, result.rows_computed / scored
    now = (
        f"{result.scored:,} scored now at {result.rate:,.1f} prompts/s,"
        f" {each:.2f} UNet evaluations ({rows:.2f} rows with padding) each"
    )
    return (
        f"{counts.rows:,} rows: {counts.ok:,} ok, {counts.quarantined:,} quarantined;"
        f" {now if result.scored else 'nothing left to score'},"
        f" {there:,} scored before; {result.out}"
    )


def _as_table(result: ScanResult, top: int) -> str:
    decided = result.decision is not None
    names = ("rank", "score", *(("p", "flagged") if decided else ()), "row", "prompt")
    cells = []
    for rank, row in enumerate(result.top(top), 1):
        verdict = (_p(row["p_value"]), "yes" if row["flagged"] else "no") if decided else ()
        cells.append(
            (str(rank), f"{row['score']:.4f}", *verdict, str(row["row_id"]), row["prompt"])
        )
    return format_table(names, cells)


def _p(value: float | None) -> str:
    # a row that a cascade stopped has none
    return "" if value is None else f"{value:.2g}"


def _as_json(result: ScanResult, top: int) -> str:
    verdict = ("p_value", "flagged") if result.decision else ()
    keys = ("row_id", "score", "n_tokens", "truncated", "prompt", *verdict)
    return json.dumps(
        {
            "out": str(result.out),
            "run_hash": result.run_hash,
            "merkle_root": result.merkle_root,
            "state": result.state,
            **result.counts.model_dump(),
            "scored": result.scored,
            "seconds": round(result.seconds, 3),
            "unet_evaluations": result.evaluations,
            "unet_rows_computed": result.rows_computed,
            "prompts_per_second": round(result.rate, 3),
            "decision": decision_json(result.decision),
            "top": [{key: row[key] for key in keys} for row in result.top(top)],
        }
    )
