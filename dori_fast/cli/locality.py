"""dori-fast locality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import AsJson, Device, Dtype, ModelSource, Revision, UnetWeights, Variant
from dori_fast.cli.terminal import Status, format_table, print_result, quiet_libraries


def locality(
    attacked: Annotated[
        Path, typer.Option(help="Run directory of dori-fast attack: many starts for one image.")
    ],
    memorized: Annotated[Path, typer.Option(help="Memorized prompts, to compare with.")],
    ordinary: Annotated[Path, typer.Option(help="Ordinary prompts, to compare with.")],
    out: Annotated[Path, typer.Option(help="Folder for locality.json and locality.png.")],
    triggers: Annotated[
        list[Path] | None,
        typer.Option(help="Run directory of dori-fast prune --embeddings; repeat for a method."),
    ] = None,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(help="That of dori-fast prune on memorized prompts, one for each --triggers."),
    ] = None,
    model: ModelSource = "demo",
    revision: Revision = None,
    variant: Variant = None,
    unet_weights: UnetWeights = None,
    limit: Annotated[int, typer.Option(help="Embeddings and prompts at most.", min=2)] = 100,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Is memorization local? Compare the triggers of one image, and what they need, with prompts.

    Attack one image from many starts (dori-fast attack --start gaussian on a file that repeats its
    row), localize the embeddings (dori-fast prune --embeddings), then compare.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.models import load
        from dori_fast.report import draw_locality
        from dori_fast.runs.methods.locality import locality as compare

        found = compare(
            load(
                model,
                revision=revision,
                variant=variant,
                unet_weights=unet_weights,
                dtype=dtype,
                device=device,
            ),
            attacked,
            memorized,
            ordinary,
            out=out,
            triggers=triggers or [],
            baselines=baselines or [],
            limit=limit,
        )
        status.say(f"locality.json and {draw_locality(out).name} in {out}")
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
