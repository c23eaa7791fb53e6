"""dori-fast bench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dori_fast.cli.exits import Debug, reported
from dori_fast.cli.options import command

_CHECKOUT = Path(__file__).resolve().parents[3]


@command()
def bench(
    what: Annotated[
        Literal["ops", "scan"], typer.Argument(help="Benchmark: the ops, or a whole scan.")
    ] = "ops",
    op: Annotated[
        list[str] | None, typer.Option(help="Op to time, for ops; repeatable; default: all.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, for scan: demo, sd14 or a diffusers directory.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Number of timings per implementation; default: 60 for ops, 9 for scan.", min=2
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Number of torch threads.", min=1)] = 1,
    device: Annotated[
        str | None, typer.Option(help="Device: cpu or cuda; default: cuda if available.")
    ] = None,
    with_compile: Annotated[
        bool, typer.Option("--compile", help="Timings of torch.compile in addition, for ops.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: the checkout's.")
    ] = None,
    no_write: Annotated[
        bool, typer.Option("--no-write", help="Timing without writing results.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Time ops or scans against eager PyTorch.

    Needs a source checkout. The baseline is the papers' code. Checks each result before timing
    it. Exit codes: 0 done, 1 a result is wrong, 2 usage.
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
    """Run the program in its own process, so that the wait policy of threads can still be set."""
    program = {"ops": "benchmarks.ops.run", "scan": "benchmarks.speed.end_to_end"}[what]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    paths = filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # -P: ignore a folder of the same name in the working directory
    command = [sys.executable, "-P", "-m", program, *arguments]
    return subprocess.run(command, env=environment).returncode
