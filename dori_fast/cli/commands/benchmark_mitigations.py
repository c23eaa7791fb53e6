"""dori-fast benchmark-mitigations."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import command, listed
from dori_fast.cli.terminal import Status, print_result, quiet_libraries
from dori_fast.errors import UsageError


@command(renamed={"images": "pictures"})
def benchmark_mitigations(
    out: Annotated[Path, typer.Option(help="Folder of all results; created if missing.")],
    mitigations: Annotated[
        str | None, typer.Option(help="Names of mitigations, comma-separated; default: all.")
    ] = None,
    finetuned: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="Fine-tuned model, and the name of its row; default name: finetuned; repeatable.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Number of memorized photographs.", min=1)] = 12,
    controls: Annotated[
        int, typer.Option(help="Number of control images that the model never saw.", min=1)
    ] = 12,
    held_out: Annotated[
        int, typer.Option(help="Number of held-out pairs to measure the quality on.", min=2)
    ] = 24,
    seeds: Annotated[int, typer.Option(help="Images drawn per embedding.", min=1)] = 4,
    budgets: Annotated[
        str, typer.Option(help="Attack steps to judge after, comma-separated; 0 is the start.")
    ] = "0,10,25,50,150",
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Other leaderboard.json, whose rows are added; repeatable."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare mitigations under attack.

    Measures copies of memorized images, copies of controls, and the quality kept, all on the
    embedded model. Writes leaderboard.json, .md and
    .png. The same command continues an interrupted run.
    """
    quiet_libraries()
    with reported(debug), Status() as status:
        from dori_fast.leaderboard import (
            FINETUNED,
            Settings,
            check_name,
            fixed,
            get,
            names,
            run,
        )
        from dori_fast.models import load

        changed = _named(finetuned or [], FINETUNED)
        for name in changed:
            check_name(name)
        if mitigations is None:
            if not changed:
                status.say("no row finetuned, which needs --finetuned MODEL")
            chosen = [*(name for name in names() if name not in changed), *changed]
        else:
            chosen = listed(mitigations) or []
            if set(changed) - set(chosen) or (FINETUNED in chosen and FINETUNED not in changed):
                raise UsageError(
                    "finetuned: use both --finetuned and its name in --mitigations, or neither"
                )
        settings = Settings(images, controls, held_out, seeds, _numbers(budgets))
        began = perf_counter()
        run(
            out,
            {
                name: fixed(partial(load, changed[name], batch_size=settings.batch_size))
                if name in changed
                else get(name)
                for name in chosen
            },
            settings=settings,
            add=add or (),
            say=lambda line: status.say(f"[{perf_counter() - began:5.0f} s] {line}"),
        )
        print_result(str(out / "leaderboard.md"))


def _named(models: list[str], plain: str) -> dict[str, str]:
    """Models by the name of their row."""
    parts = [model.rpartition("=") for model in models]
    found = {name or plain: model for name, _, model in parts}
    if len(found) < len(models):
        raise UsageError("finetuned: two models of one name; use --finetuned NAME=MODEL for each")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in listed(text) or [])
    except ValueError:
        raise UsageError(f"--budgets: {text!r} is no list of whole numbers; use 0,10,25") from None
