"""dori-fast verify."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dori_fast._text import harmless
from dori_fast.cli.exits import INTEGRITY, Debug, print_error, reported
from dori_fast.cli.options import AsJson, command
from dori_fast.cli.terminal import Status, print_result, quiet_libraries

if TYPE_CHECKING:
    from dori_fast.runs.verify.result import Verification


@command()
def verify(
    run: Annotated[Path, typer.Argument(help="Run directory of scan, prune or attack.")],
    sample: Annotated[
        float, typer.Option(help="Share of a scan's rows to re-score; 0: none.")
    ] = 0.01,
    seed: Annotated[
        int | None, typer.Option(help="Seed for choosing the rows to re-score; default: random.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Merkle root that the run printed, to compare with.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Directory of the model, if it has moved.")
    ] = None,
    files_only: Annotated[
        bool,
        typer.Option("--files-only", help="Result files alone, without model and scores."),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a finished run and re-score a sample.

    Checks every byte, row and weight file. Writes nothing. Exit codes: 0 no finding, 2 usage, 4
    findings.
    """
    quiet_libraries()
    with reported(debug), Status():
        from dori_fast.runs.verify.verify import verify as check

        found = check(run, model=model, sample=sample, seed=seed, root=root, files_only=files_only)
        print_result(_as_json(found) if as_json else _as_text(found))
        if found.findings:
            print_error(f"{run}: {len(found.findings)} findings; each has its remedy above")
            raise typer.Exit(INTEGRITY)


def _as_text(found: Verification) -> str:
    lines = [f"checked      {line}" for line in found.checked]
    lines += [f"not checked  {line}" for line in found.skipped]
    lines += [f"FOUND        {finding}" for finding in found.findings]
    if found.merkle_root is not None:
        lines.append(f"Merkle root  {found.merkle_root}")
    return "\n".join(harmless(line) for line in lines)


def _as_json(found: Verification) -> str:
    facts = dataclasses.asdict(found) | {"run": str(found.run)}
    return json.dumps(facts | {"findings": [f._asdict() for f in found.findings]})
