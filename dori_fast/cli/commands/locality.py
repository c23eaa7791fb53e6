"""dori-fast locality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    Header,
    MaxErrors,
    ModelOptions,
    command,
)
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries


@command()
def locality(
    attacked: Annotated[
        Path,
        typer.Option(help="Run directory of dori-fast attack on one image from many starts."),
    ],
    memorized: Annotated[Path, typer.Option(help="Memorized prompts to compare with.")],
    ordinary: Annotated[Path, typer.Option(help="Ordinary prompts to compare with.")],
    out: Annotated[Path, typer.Option(help="Folder of locality.json and locality.png.")],
    source: ModelOptions,
    triggers: Annotated[
        list[Path] | None,
        typer.Option(help="Run directory of dori-fast prune --embeddings; repeatable."),
    ] = None,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run directory of dori-fast prune on memorized prompts; one per --triggers."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Largest number of embeddings and prompts.", min=2)
    ] = 100,
    header: Header = None,
    max_errors: MaxErrors = 0.01,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Test whether memorization is local.

    If it is, all triggers (embeddings that retrieve one image) need the same few neurons or
    weights. Compares such triggers, and what they need, with memorized and ordinary prompts.
    First attack one image from many starts (dori-fast attack --start gaussian on a file that
    repeats its row), then localize the embeddings (dori-fast prune --embeddings), then compare.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.report import draw_locality
        from dori_fast.runs.methods.locality import locality as compare

        found = compare(
            source.load(),
            attacked,
            memorized,
            ordinary,
            out=out,
            triggers=triggers or [],
            baselines=baselines or [],
            limit=limit,
            header=header,
            max_errors=max_errors,
        )
        unet = found["unet"]
        status.say(
            f"wrote locality.json and {draw_locality(out).name} to {out};"
            f" {unet['evaluations']:,} UNet evaluations ({unet['rows_computed']:,} rows with"
            " padding)"
        )
        print_result(json.dumps(found) if as_json else _as_table(found))


def _as_table(found: dict[str, Any]) -> str:
    cells = [
        ("distance", name, f"{quantiles[2]:.3g}", "")
        for name, quantiles in found["distances"].items()
    ]
    for kind in ("values", "feed_forwards"):
        for layer, groups in found[kind].items():
            cells.append((kind, layer, f"{groups['found']:.3g}", f"{groups['memorized']:.3g}"))
    for layers in found["agreement"]:
        for layer, groups in layers.items():
            ious = [_iou(groups[group]["iou"]) for group in ("found", "memorized")]
            cells.append(("agreement", layer, *ious))
    return format_table(("what", "layer or group", "found", "memorized"), cells)


def _iou(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
