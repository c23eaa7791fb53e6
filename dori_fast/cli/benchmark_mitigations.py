"""dori-fast benchmark-mitigations."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.terminal import Status, print_result, quiet_libraries
from dori_fast.errors import UsageError


def benchmark_mitigations(
    out: Annotated[Path, typer.Option(help="The folder of all results; made if need be.")],
    mitigations: Annotated[
        str | None, typer.Option(help="Names, with commas between; all that are known if left out.")
    ] = None,
    finetuned: Annotated[
        list[str] | None,
        typer.Option(help="A fine-tuned model, as the row finetuned; or NAME=MODEL; repeat."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Memorized photographs.", min=1)] = 12,
    controls: Annotated[int, typer.Option(help="Pictures never seen, as controls.", min=1)] = 12,
    held_out: Annotated[int, typer.Option(help="Held-out pairs for the quality.", min=2)] = 24,
    seeds: Annotated[int, typer.Option(help="Images drawn from each embedding.", min=1)] = 4,
    budgets: Annotated[
        str, typer.Option(help="Attack steps, with commas between; 0 is the start.")
    ] = "0,10,25,50,150",
    add: Annotated[
        list[Path] | None, typer.Option(help="Add the rows of another leaderboard.json.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare mitigations under attack on the embedded model, with controls and quality.

    Ends in leaderboard.json, .md and .png. An interrupted run is continued by the same command.
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
                status.say("finetuned is left out: no --finetuned MODEL")
            chosen = [*(name for name in names() if name not in changed), *changed]
        else:
            chosen = _words(mitigations)
            if set(changed) - set(chosen) or (FINETUNED in chosen and FINETUNED not in changed):
                raise UsageError(
                    "finetuned: name it in --mitigations and give --finetuned, or neither"
                )
        settings = Settings(pictures, controls, held_out, seeds, _numbers(budgets))
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
        raise UsageError("finetuned: two models of one name — give NAME=MODEL for each")
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise UsageError(f"--budgets: {text!r} is not whole numbers with commas between") from None
