"""dori-fast dedup and dori-fast join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import AsJson, Column, Keep, ModelSource, Revision, Where, listed
from dori_fast.cli.terminal import Status, print_result, quiet_libraries

Memory = Annotated[str, typer.Option(help="Held in memory; the rest spills to the disk.")]


def dedup(
    prompts: Annotated[Path, typer.Argument(help="As in a scan.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    model: ModelSource = "demo",
    revision: Revision = None,
    column: Column = None,
    where: Where = None,
    keep: Keep = None,
    memory: Memory = "1GB",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the prompts that are the same to a model, so that each is scored once.

    Then: dori-fast scan OUT/unique.parquet --out RUN, and dori-fast join OUT RUN --out FILE.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.models import load
        from dori_fast.runs.dedup.dedup import dedup as find

        found = find(
            load(model, revision=revision, device="cpu"),
            prompts,
            out=out,
            column=column,
            where=where or [],
            keep=listed(keep),
            memory=memory,
        )
        status.say(
            f"{found.rows:,} rows: {found.unique:,} distinct token sequences,"
            f" {found.quarantined:,} rows without a prompt; {out}"
        )
        if as_json:
            print_result(found.model_dump_json())


def join(
    folder: Annotated[Path, typer.Argument(help="Of dori-fast dedup.")],
    run: Annotated[Path, typer.Argument(help="A finished scan of its unique.parquet.")],
    out: Annotated[Path, typer.Option(help="A parquet file: every row of the input, scored.")],
    prompts: Annotated[Path | None, typer.Option(help="The input, if it has moved.")] = None,
    memory: Memory = "1GB",
    debug: Debug = False,
) -> None:
    """Give every row of the input the score of its distinct prompt."""
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.runs.dedup.join import join as joined

        rows = joined(folder, run, out=out, prompts=prompts, memory=memory)
        status.say(f"{rows:,} rows; {out}")
