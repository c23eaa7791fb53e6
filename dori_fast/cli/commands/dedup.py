"""dori-fast dedup and dori-fast join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import (
    AsJson,
    Column,
    Header,
    Keep,
    MaxErrors,
    ModelSource,
    Where,
    command,
    listed,
)
from dori_fast.cli.terminal import Status, print_result, quiet_libraries

Memory = Annotated[str, typer.Option(help="Memory to use; larger tables spill to the disk.")]


@command()
def dedup(
    prompts: Annotated[
        Path, typer.Argument(help="File, folder or pattern of prompts, as for scan.")
    ],
    out: Annotated[Path, typer.Option(help="New folder of the results.")],
    source: ModelSource,
    column: Column = None,
    header: Header = None,
    where: Where = None,
    keep: Keep = None,
    max_errors: MaxErrors = 0.01,
    memory: Memory = "1GB",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find prompts with the same token sequence.

    Writes OUT/unique.parquet, which has each token sequence once, so that a scan of it scores
    each once. Then: dori-fast scan OUT/unique.parquet --out RUN, and dori-fast join OUT RUN
    --out FILE.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.runs.dedup.dedup import dedup as find

        found = find(
            source.load(device="cpu"),
            prompts,
            out=out,
            column=column,
            header=header,
            where=where or [],
            keep=listed(keep),
            max_errors=max_errors,
            memory=memory,
        )
        status.say(
            f"{found.rows:,} rows: {found.unique:,} distinct token sequences,"
            f" {found.quarantined:,} rows without a prompt; {out}"
        )
        if as_json:
            print_result(found.model_dump_json())


def join(
    folder: Annotated[Path, typer.Argument(help="Folder that dori-fast dedup wrote (its --out).")],
    run: Annotated[Path, typer.Argument(help="Finished scan of its unique.parquet.")],
    out: Annotated[Path, typer.Option(help="Parquet file of all rows with their scores.")],
    prompts: Annotated[Path | None, typer.Option(help="Input file, if it has moved.")] = None,
    memory: Memory = "1GB",
    debug: Debug = False,
) -> None:
    """Copy scores from unique prompts to every row."""
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.runs.dedup.join import join as joined

        rows = joined(folder, run, out=out, prompts=prompts, memory=memory)
        status.say(f"{rows:,} rows; {out}")
