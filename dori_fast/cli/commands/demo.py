"""dori-fast demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import command
from dori_fast.cli.terminal import Status, print_result, quiet_libraries


@command(renamed={"images": "pictures"})
def demo(
    out: Annotated[Path, typer.Option(help="Folder of all results; created if missing.")],
    images: Annotated[int, typer.Option(help="Number of memorized photographs.", min=1)] = 6,
    controls: Annotated[
        int, typer.Option(help="Number of control images that the model never saw.", min=1)
    ] = 6,
    seeds: Annotated[int, typer.Option(help="Images drawn per embedding.", min=1)] = 4,
    attack_steps: Annotated[int, typer.Option(help="Optimizer steps per attack.", min=1)] = 50,
    prompts: Annotated[
        int | None, typer.Option(help="Number of sample prompts to scan; default: all.", min=1)
    ] = None,
    finetuned: Annotated[
        str, typer.Option(help="Fine-tuned model: demo-finetuned or a diffusers directory.")
    ] = "demo-finetuned",
    debug: Debug = False,
) -> None:
    """Run the whole story on the embedded model.

    Finds memorized photographs, hides them by pruning, retrieves them by an attack, and removes
    them by fine-tuning. Writes report.html. The same command continues an interrupted run.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.demo.story import BATCH, Settings, tell
        from dori_fast.models import load

        steps = tuple(sorted({0, *(n for n in (10, 25) if n < attack_steps), attack_steps}))
        page = tell(
            out,
            settings=Settings(images, controls, seeds, steps, prompts),
            finetuned=partial(load, finetuned, batch_size=BATCH),
            say=status.say,
        )
        print_result(str(page))
