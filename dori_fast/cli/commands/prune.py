"""dori-fast prune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dori_fast.cli.exits import Debug, end_over_budget, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    Header,
    Limit,
    MaxErrors,
    ModelOptions,
    Resume,
    command,
)
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.runs.methods.prune import PruneResult


@command(renamed={"images": "pictures"})
def prune(
    prompts: Annotated[
        Path, typer.Option(help="Memorized prompts; .txt, .csv, .jsonl or .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="Run directory; created if missing.")],
    source: ModelOptions,
    method: Annotated[
        Literal["nemo", "wanda"],
        typer.Option(help="Method: nemo finds neurons, wanda finds weights."),
    ] = "nemo",
    column: Column = None,
    header: Header = None,
    clean: Annotated[
        Path | None,
        typer.Option(help="Clean prompts for nemo's statistics; default: the shipped prompts."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Saved statistics for nemo: .safetensors, or .pt of the released code."),
    ] = None,
    layers: Annotated[
        Literal["encoder", "all"], typer.Option(help="Value layers that nemo searches.")
    ] = "encoder",
    mode: Annotated[
        Literal["paper", "reference"],
        typer.Option(help="Variant of nemo: the paper or the released code."),
    ] = "paper",
    threshold: Annotated[
        float | None,
        typer.Option(help="Similarity above which nemo calls prompts memorized. [default: 0.428]"),
    ] = None,
    theta_end: Annotated[
        float, typer.Option(help="Lowest z-score in nemo's search for candidate neurons.")
    ] = 1.0,
    units: Annotated[
        Literal["epsilon", "x0", "prediction"],
        typer.Option(help="Predictions that nemo compares; prediction: the network's own output."),
    ] = "epsilon",
    sparsity: Annotated[
        float, typer.Option(help="Share of each weight row that wanda prunes per step.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(help="Number of denoising steps that wanda reads.")] = 10,
    both_halves: Annotated[
        bool,
        typer.Option(
            "--both-halves/--conditional-half",
            help="Inputs that wanda reads: both halves of guidance, or the prompts' half.",
        ),
    ] = True,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Run directory of dori-fast attack, whose embeddings replace the prompts."
        ),
    ] = None,
    limit: Limit = None,
    images: Annotated[
        int, typer.Option(help="Number of prompts to draw before and after pruning.", min=0)
    ] = 0,
    resume: Resume = "auto",
    max_errors: MaxErrors = 0.01,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find neurons or weights behind memorized prompts.

    Makes one mask per prompt. Writes masks.safetensors, layers.png and, with nemo, nemo.csv in
    the released code's format. The same command continues an interrupted run. Exit codes are
    those of scan.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.errors import UsageError
        from dori_fast.prune import NeMo, Wanda
        from dori_fast.prune.nemo.search import THRESHOLD
        from dori_fast.report import draw_prune
        from dori_fast.runs.methods.prune import prune as run_prune
        from dori_fast.runs.methods.prune import read_statistics, save_images, statistics_of
        from dori_fast.runs.sources.open import open_prompts
        from dori_fast.runs.sources.where import Selection

        open_prompts(prompts, column, Selection.of(header=header))
        loaded = source.load()
        if images:
            loaded.autoencoder.require()
        chosen: NeMo | Wanda
        if method == "wanda":
            chosen = Wanda(sparsity, steps, both_halves=both_halves, joint=False)
        elif clean is not None and statistics is not None:
            raise UsageError("prune: --clean and --statistics exclude each other; use one")
        else:
            usual = read_statistics(statistics) if statistics else None
            chosen = NeMo(
                statistics_of(loaded, clean, header, max_errors) if clean else usual,
                layers=layers,
                mode=mode,
                threshold=THRESHOLD if threshold is None else threshold,
                theta_end=theta_end,
                units=units,
            )
        result = run_prune(
            loaded,
            prompts,
            out=out,
            method=chosen,
            embeddings=embeddings,
            column=column,
            header=header,
            limit=limit,
            resume=resume,
            max_errors=max_errors,
            on_progress=status.progress,
        )
        if images:
            save_images(result, loaded, images, seeds=range(4))
        run = result.run
        drawn = draw_prune(out) if run.counts.ok else []
        files = ["masks", *(path.name for path in drawn)] if drawn else ["reasons"]
        status.say(
            f"{run.done:,} prompts localized in {run.seconds:.1f} s with {run.rows_computed:,} UNet"
            f" rows, {run.counts.quarantined:,} of {run.counts.rows:,} quarantined;"
            f" {', '.join(files)} in {out}"
        )
        print_result(_as_json(result) if as_json else _as_table(result))
        end_over_budget(run)


def _sizes(result: PruneResult) -> list[int]:
    import torch

    sizes: list[int] = torch.stack(list(result.masks.counts().values())).sum(0).tolist()
    return sizes


def _as_table(result: PruneResult) -> str:
    cells = []
    for row, size in zip(result.run.rows(), _sizes(result), strict=True):
        found = row["status"] if row["status"] != "ok" else str(size)
        cells.append((str(row["row_id"]), found, str(row["evaluations"] or 0), row["prompt"] or ""))
    return format_table(("row", "pruned", "evaluations", "prompt"), cells)


def _as_json(result: PruneResult) -> str:
    rows: list[dict[str, Any]] = []
    for row, size in zip(result.run.rows(), _sizes(result), strict=True):
        kept = ("row_id", "prompt", "status", "error", "evaluations")
        pruned = size if row["status"] == "ok" else None
        rows.append({**{key: row[key] for key in kept}, "pruned": pruned})
    facts = {"out": str(result.run.out), "state": result.run.state, "layers": result.layers}
    return json.dumps({**facts, "rows_computed": result.run.rows_computed, "rows": rows})
