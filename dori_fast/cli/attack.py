"""dori-fast attack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    Device,
    Dtype,
    Limit,
    ModelSource,
    Resume,
    Revision,
    UnetWeights,
    Variant,
)
from dori_fast.cli.sources import demo_pictures
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.runs.methods.attack import AttackRun


def attack(
    prompts: Annotated[Path, typer.Option(help="Prompts; .txt, .csv, .jsonl, .parquet.")],
    images: Annotated[
        str, typer.Option(help="Folder of the pictures to retrieve; or demo: its own, by prompt.")
    ],
    out: Annotated[Path, typer.Option(help="The run directory; made if need be.")],
    image_column: Annotated[
        str, typer.Option(help="Column of file names, relative to the folder.")
    ] = "image",
    masks: Annotated[
        Path | None, typer.Option(help="Prune: run directory of dori-fast prune, or a mask file.")
    ] = None,
    in_turn: Annotated[
        bool,
        typer.Option("--in-turn", help="More rows than masks, for controls: begin with 1 again."),
    ] = False,
    model: ModelSource = "demo",
    revision: Revision = None,
    variant: Variant = None,
    unet_weights: UnetWeights = None,
    column: Column = None,
    attack_steps: Annotated[int, typer.Option(help="Optimizer steps: the budget.")] = 50,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.1,
    draws: Annotated[int, typer.Option(help="Draws of noise and timestep per step.")] = 8,
    objective: Annotated[str, typer.Option(help="epsilon, min-snr or prediction.")] = "epsilon",
    snr_cap: Annotated[float, typer.Option(help="min-snr: largest weight of a noise level.")] = 5.0,
    start: Annotated[
        Literal["prompt", "gaussian"], typer.Option(help="Where embeddings start.")
    ] = "prompt",
    seeds: Annotated[int, typer.Option(help="Pictures drawn to judge each row.", min=1)] = 10,
    steps: Annotated[int, typer.Option(help="DDIM steps of those pictures.", min=1)] = 50,
    guidance: Annotated[float, typer.Option(help="Their guidance scale.")] = 7.5,
    block: Annotated[int, typer.Option(help="Rows per block that a resume keeps.", min=1)] = 16,
    limit: Limit = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    resume: Resume = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find embeddings that make a model draw given pictures, pruned or not, and judge them.

    Enough steps inject any picture: run pictures that the model never saw at the same budget too.
    Writes embeddings.safetensors and attack.png. An interrupted run is continued by the same
    command.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.attack import Dori
        from dori_fast.models import load
        from dori_fast.report import draw_attack
        from dori_fast.runs.methods.attack import Judging, read_masks
        from dori_fast.runs.methods.attack import attack as run_attack
        from dori_fast.runs.sources.open import open_prompts

        open_prompts(prompts, column)
        method = Dori(attack_steps, lr, draws, objective=objective, snr_cap=snr_cap)
        chosen = None if masks is None else read_masks(masks)
        result = run_attack(
            load(
                model,
                revision=revision,
                variant=variant,
                unet_weights=unet_weights,
                dtype=dtype,
                device=device,
            ),
            prompts,
            demo_pictures() if images == "demo" else images,
            out=out,
            method=method,
            start=start,
            masks=chosen,
            in_turn=in_turn,
            judging=Judging(seeds, steps, guidance),
            column=column,
            image_column=image_column,
            block=block,
            limit=limit,
            resume=resume,
            on_progress=status.progress,
        )
        rows = list(result.run.rows())
        if any(row["status"] == "ok" for row in rows):
            draw_attack(out, result.threshold)
        status.say(f"{result.run.done:,} rows attacked in {result.run.seconds:.1f} s; see {out}")
        print_result(_as_json(result, rows) if as_json else _as_table(result, rows))


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
    found = {"out": str(result.run.out), "threshold": result.threshold, "rows": kept}
    return json.dumps(found)
