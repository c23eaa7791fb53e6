"""dori-fast attack."""

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
from dori_fast.cli.sources import demo_images
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.runs.methods.attack import AttackRun


@command()
def attack(
    prompts: Annotated[Path, typer.Option(help="Prompts; .txt, .csv, .jsonl or .parquet.")],
    images: Annotated[
        str,
        typer.Option(help="Folder of images to retrieve; demo: the embedded model's, by prompt."),
    ],
    out: Annotated[Path, typer.Option(help="Run directory; created if missing.")],
    source: ModelOptions,
    image_column: Annotated[
        str, typer.Option(help="Column of image file names, relative to --images.")
    ] = "image",
    masks: Annotated[
        Path | None,
        typer.Option(help="Masks to attack under: run directory of dori-fast prune or mask file."),
    ] = None,
    in_turn: Annotated[
        bool,
        typer.Option(
            "--in-turn", help="Masks taken in turn by more rows than masks, such as controls."
        ),
    ] = False,
    column: Column = None,
    header: Header = None,
    attack_steps: Annotated[int, typer.Option(help="Number of optimizer steps.")] = 50,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.1,
    draws: Annotated[int, typer.Option(help="Draws of noise and timestep per step and image.")] = 8,
    objective: Annotated[
        str, typer.Option(help="Attack loss: epsilon, min-snr or prediction.")
    ] = "epsilon",
    snr_cap: Annotated[
        float, typer.Option(help="Largest weight of a noise level, for --objective min-snr.")
    ] = 5.0,
    start: Annotated[
        Literal["prompt", "gaussian"], typer.Option(help="Starting point of each embedding.")
    ] = "prompt",
    seeds: Annotated[
        int, typer.Option(help="Number of images drawn to judge each row.", min=1)
    ] = 10,
    steps: Annotated[int, typer.Option(help="DDIM steps of the drawn images.", min=1)] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the drawn images.")] = 7.5,
    block: Annotated[
        int, typer.Option(help="Rows per block, the most that an interruption loses.", min=1)
    ] = 16,
    limit: Limit = None,
    resume: Resume = "auto",
    max_errors: MaxErrors = 0.01,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find embeddings that retrieve given images.

    Attacks the model, pruned or not, and judges images drawn from the embeddings. Enough steps
    inject any image: also attack images that the model never saw, at the same budget. Writes
    embeddings.safetensors and attack.png. The same command continues an interrupted run. Exit
    codes are those of scan.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.attack import Dori
        from dori_fast.report import draw_attack
        from dori_fast.runs.methods.attack import Judging, read_masks
        from dori_fast.runs.methods.attack import attack as run_attack
        from dori_fast.runs.sources.open import open_prompts
        from dori_fast.runs.sources.where import Selection

        open_prompts(prompts, column, Selection.of(header=header))
        method = Dori(attack_steps, lr, draws, objective=objective, snr_cap=snr_cap)
        chosen = None if masks is None else read_masks(masks)
        result = run_attack(
            source.load(),
            prompts,
            demo_images() if images == "demo" else images,
            out=out,
            method=method,
            start=start,
            masks=chosen,
            in_turn=in_turn,
            judging=Judging(seeds, steps, guidance),
            column=column,
            header=header,
            image_column=image_column,
            block=block,
            limit=limit,
            resume=resume,
            max_errors=max_errors,
            on_progress=status.progress,
        )
        rows = list(result.run.rows())
        run = result.run
        if run.counts.ok:
            draw_attack(out, result.threshold)
        status.say(
            f"{run.done:,} rows attacked in {run.seconds:.1f} s, {run.counts.quarantined:,} of"
            f" {run.counts.rows:,} quarantined; {run.evaluations:,} UNet evaluations"
            f" ({run.rows_computed:,} rows with padding), images included; see {out}"
        )
        print_result(_as_json(result, rows) if as_json else _as_table(result, rows))
        end_over_budget(run)


def _copies(similarity: list[float] | None, threshold: float) -> str:
    if similarity is None:
        return "-"
    return f"{sum(value > threshold for value in similarity)}/{len(similarity)}"


def _as_table(result: AttackRun, rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            str(row["row_id"]),
            row["status"],
            _copies(row["similarity_before"], result.threshold),
            _copies(row["similarity"], result.threshold),
            row["error"] or row["prompt"] or "",
        )
        for row in rows
    ]
    return format_table(("row", "status", "copies before", "after", "prompt"), cells)


def _as_json(result: AttackRun, rows: list[dict[str, Any]]) -> str:
    left_out = ("embedding", "losses")
    kept = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    facts = {
        "out": str(result.run.out),
        "state": result.run.state,
        "threshold": result.threshold,
        "unet_evaluations": result.run.evaluations,
        "unet_rows_computed": result.run.rows_computed,
    }
    return json.dumps({**facts, "rows": kept})
