"""Options that several commands take: what is scored, with which model and detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _auto_or_int(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 'auto' nor a whole number") from None


def _switch(text: str) -> bool | str:
    values: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
    if text not in values:
        raise typer.BadParameter(f"{text!r} is none of auto, on and off")
    return values[text]


def listed(names: str | None) -> list[str] | None:
    """The names of a comma-separated list, which may be empty."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


ModelSource = Annotated[str, typer.Option(help="demo, a diffusers directory or a hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Variant = Annotated[str | None, typer.Option(help="Of the weight files, such as fp16.")]
UnetWeights = Annotated[
    Path | None, typer.Option(help="A safetensors file with some of the UNet's weights.")
]
Column = Annotated[str | None, typer.Option(help="The prompt column, if not found.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help="Only such rows: 'similarity > 0.3'; repeatable."),
]
Keep = Annotated[
    str | None, typer.Option(metavar="A,B", help="Columns to carry along; all by default.")
]
DetectorName = Annotated[str, typer.Option(help="See dori-fast ls detectors.")]
Seeds = Annotated[int, typer.Option(help="Noise seeds, shared by all prompts.")]
Steps = Annotated[int, typer.Option(help="Denoising steps that are scored.")]
BatchSize = Annotated[
    Any, typer.Option(parser=_auto_or_int, metavar="auto|N", help="UNet samples at a time.")
]
Workers = Annotated[
    Any,
    typer.Option(parser=_auto_or_int, metavar="auto|N", help="Processes; auto: one for each GPU."),
]
Limit = Annotated[int | None, typer.Option(help="Read only the first rows.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, fp16, bf16 or fp64.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Resume = Annotated[
    Literal["auto", "never", "must"],
    typer.Option(help="Continue what is there, want a fresh directory, or want a run."),
]
Compile = Annotated[
    Any, typer.Option(parser=_switch, metavar="auto|on|off", help="Compile the network's parts.")
]
ChannelsLast = Annotated[
    Any, typer.Option(parser=_switch, metavar="auto|on|off", help="Channels innermost in memory.")
]
CudaGraphs = Annotated[
    Any, typer.Option(parser=_switch, metavar="auto|on|off", help="Replay launches; small batches.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
