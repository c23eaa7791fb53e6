"""dori-fast status."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import AsJson, command
from dori_fast.cli.terminal import format_table, print_result

if TYPE_CHECKING:
    from dori_fast.runs.store.status import RunStatus


@command()
def status(
    run: Annotated[Path, typer.Argument(help="Run directory of scan, prune or attack.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the progress of a run.

    Works while the run is active. Writes nothing.
    """
    with reported(debug):
        from dori_fast.runs.store.status import status as read

        found = read(run)
        facts = dataclasses.asdict(found) | {"run": str(run)}
        print_result(json.dumps(facts) if as_json else _as_text(found))


def _as_text(found: RunStatus) -> str:
    left = found.remaining
    rows = [
        ("state", f"{found.state}; {found.owner or 'no owner'}"),
        ("committed", f"{found.rows:,} rows in {found.shards:,} shards"),
        ("quarantined", f"{found.quarantined:,} rows; {found.set_aside:,} shards set aside"),
        ("rate", "unknown" if found.rate is None else f"{found.rate:,.1f} rows/s lately"),
        ("input read", "unknown" if found.share is None else f"{found.share:.1%}"),
        ("remaining", "unknown" if left is None else str(timedelta(seconds=round(left)))),
    ]
    return format_table(("run", str(found.run)), rows)
