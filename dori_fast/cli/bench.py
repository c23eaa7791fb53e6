"""dori-fast bench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dori_fast.cli.exits import Debug, reported

_CHECKOUT = Path(__file__).resolve().parents[2]


def bench(
    what: Annotated[
        Literal["ops", "scan"], typer.Argument(help="The ops, or scoring from end to end.")
    ] = "ops",
    op: Annotated[list[str] | None, typer.Option(help="This op only; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="For scan: demo, sd14 or a directory.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Timings of each provider.", min=2)] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    with_compile: Annotated[
        bool, typer.Option("--compile", help="Time torch.compile of the eager ops as well.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="Folder of the CSV; the checkout's if not given.")
    ] = None,
    no_write: Annotated[bool, typer.Option("--no-write", help="Keep no results.")] = False,
    debug: Debug = False,
) -> None:
    """Time against eager PyTorch as the papers' code does it; needs a source checkout.

    Each result is checked before it is timed. Exit codes: 0 done, 1 a result is wrong, 2 usage.
    """
    with reported(debug):
        _require_checkout()
        _require_meaning(
            what, {"scan": {"--model": model}, "ops": {"--op": op, "--compile": with_compile}}
        )
        options = {"--model": model, "--rounds": rounds, "--device": device, "--results": results}
        arguments = [str(x) for pair in options.items() if pair[1] is not None for x in pair]
        arguments += [x for name in op or [] for x in ("--op", name)]
        arguments += ["--threads", str(threads), *["--compile"] * with_compile]
        raise typer.Exit(_run(what, [*arguments, *["--no-write"] * no_write]))


def _require_meaning(what: str, meant_for: dict[str, dict[str, object]]) -> None:
    from dori_fast.errors import UsageError

    for other, options in meant_for.items():
        given = [name for name, value in options.items() if value]
        if given and other != what:
            raise UsageError(f"bench: {given[0]} is for {other}, not for {what}; leave it out")


def _require_checkout() -> None:
    from dori_fast.errors import UsageError

    if not (_CHECKOUT / "benchmarks" / "ops" / "run.py").exists():
        raise UsageError(
            "bench: the benchmarks are not part of the installed package; clone the repository,"
            " pip install -e . there, and run it again"
        )


def _run(what: str, arguments: list[str]) -> int:
    """Run the program in a process of its own: its threads can still be told to wait passively."""
    program = {"ops": "benchmarks.ops.run", "scan": "benchmarks.speed.end_to_end"}[what]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    paths = filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # -P: a folder of that name where the user stands is not ours
    command = [sys.executable, "-P", "-m", program, *arguments]
    return subprocess.run(command, env=environment).returncode
