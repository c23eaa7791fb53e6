"""dori-fast demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.terminal import Status, print_result, quiet_libraries


def demo(
    out: Annotated[Path, typer.Option(help="The folder of all results; made if need be.")],
    pictures: Annotated[int, typer.Option(help="Memorized photographs.", min=1)] = 6,
    controls: Annotated[int, typer.Option(help="Pictures never seen, as controls.", min=1)] = 6,
    seeds: Annotated[int, typer.Option(help="Images drawn from each embedding.", min=1)] = 4,
    attack_steps: Annotated[int, typer.Option(help="The attack's budget.", min=1)] = 50,
    prompts: Annotated[
        int | None, typer.Option(help="Scan only the first of the sample prompts.", min=1)
    ] = None,
    finetuned: Annotated[
        str, typer.Option(help="The fine-tuned model: the shipped one, or a diffusers directory.")
    ] = "demo-finetuned",
    debug: Debug = False,
) -> None:
    """Tell the whole story on the embedded model: found, hidden, retrieved, removed.

    Ends in report.html. An interrupted run is continued by the same command.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.demo.story import BATCH, Settings, tell
        from dori_fast.models import load

        steps = tuple(sorted({0, *(n for n in (10, 25) if n < attack_steps), attack_steps}))
        page = tell(
            out,
            settings=Settings(pictures, controls, seeds, steps, prompts),
            finetuned=partial(load, finetuned, batch_size=BATCH),
            say=status.say,
        )
        print_result(str(page))
